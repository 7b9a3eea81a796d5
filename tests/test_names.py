"""Names of heads: made from columns, and refused where they cannot stand after a dot."""

import keyword

import pytest

from fastai_heads.errors import HeadsError
from fastai_heads.names import check_name, usable_name


@pytest.mark.parametrize(
    ("column", "name"),
    [
        ("breed", "breed"),
        ("eye colour", "eye_colour"),
        (" a-b (c) ", "a_b_c"),
        ("2nd", "_2nd"),
        ("área", "área"),
        ("area cm²", "area_cm2"),
        ("½", "_1_2"),
        ("Ⅳ", "IV"),
        ("ﬁeld", "field"),
        ("class", "class_"),
        ("None", "None_"),
        ("type", "type_"),
        ("values", "values_"),
        ("count", "count_"),
        ("train", "train_"),
        ("index", "index_"),
        ("names", "names_"),
        ("deciding", "deciding_"),
        ("_place", "place"),
        ("", "target"),
        ("%%", "target"),
        (7, "_7"),
        (None, "None_"),
    ],
)
def test_a_column_becomes_a_name_that_can_be_used(column, name):
    assert usable_name(column) == name
    assert check_name(name) == name


def test_names_in_use_get_a_number():
    taken = []
    for _ in range(3):
        taken.append(usable_name("age", taken))
    assert taken == ["age", "age_2", "age_3"]
    assert usable_name("age", ["age", "age_3"]) == "age_2"
    assert usable_name("age", ["age", "age_2"]) == "age_3"
    assert usable_name("eye colour", ["eye_colour"]) == "eye_colour_2"
    assert usable_name("count", ["count_"]) == "count__2" == check_name("count__2")


@pytest.mark.parametrize("name", keyword.kwlist)
def test_no_keyword_is_a_name(name):
    with pytest.raises(HeadsError, match=rf"`heads`: the name '{name}' is taken.*Did you mean '{name}_'"):
        check_name(name)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("eye colour", r"'eye colour' is not an identifier.*`preds.<name>`. Did you mean 'eye_colour'"),
        ("1st", r"'1st' is not an identifier.*'_1st'"),
        ("", r"'' is not an identifier"),
        (3, r"the name 3 is not an identifier"),
        (None, r"the name None is not an identifier"),
        ("count", r"'count' is taken.*'count_'"),
        ("items", r"'items' is taken"),
        ("type", r"'type' is taken"),
        ("parameters", r"'parameters' is taken"),
        ("asdict", r"'asdict' is taken"),
    ],
)
def test_an_explicit_bad_name_is_refused_with_a_better_one(name, says):
    with pytest.raises(HeadsError, match=says):
        check_name(name)


def test_the_error_says_which_parameter_it_is_about():
    with pytest.raises(HeadsError, match=r"`trunk`: the name 'a b'"):
        check_name("a b", "trunk")
