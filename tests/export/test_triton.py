"""A model repository of Triton: its configuration is a message of the published schema, and says what the file is."""

from pathlib import Path

import numpy as np
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format

from fastai_heads.errors import HeadsError
from fastai_heads.export.triton import export_triton


def parse_config(file: Path) -> object:
    "Parse a configuration as Triton does, and refuse a field that its schema does not have."
    pool = descriptor_pool.DescriptorPool()
    schema = descriptor_pb2.FileDescriptorSet.FromString(
        (Path(__file__).parent / "triton/model_config.binpb").read_bytes()
    )
    for one in schema.file:
        pool.Add(one)
    message = message_factory.GetMessageClass(pool.FindMessageTypeByName("inference.ModelConfig"))()
    return text_format.Parse(file.read_text(encoding="utf-8"), message)


@pytest.fixture(scope="module")
def repository(make_images, tmp_path_factory) -> Path:
    "Write a repository with a class, tags and a number."
    learn = make_images(("digit", "tags", "ink"), arch="test_resnet")
    folder = tmp_path_factory.mktemp("triton")
    export_triton(folder, learn, name="my digits", batch=16)
    return folder


def test_the_configuration_is_what_the_file_is(repository):
    import onnxruntime

    config = parse_config(repository / "my digits" / "config.pbtxt")
    assert (config.name, config.backend, config.max_batch_size) == ("my digits", "onnxruntime", 16)
    assert config.dynamic_batching.max_queue_delay_microseconds == 5000
    session = onnxruntime.InferenceSession(repository / "my digits" / "1" / "model.onnx")
    types = {"tensor(uint8)": "TYPE_UINT8", "tensor(float)": "TYPE_FP32", "tensor(int64)": "TYPE_INT64"}
    for tensors, nodes in ((config.input, session.get_inputs()), (config.output, session.get_outputs())):
        enum = tensors[0].DESCRIPTOR.fields_by_name["data_type"].enum_type
        said = {t.name: (enum.values_by_number[t.data_type].name, list(t.dims)) for t in tensors}
        assert said == {n.name: (types[n.type], n.shape[1:] or [1]) for n in nodes}
        assert all(t.HasField("reshape") == (n.shape[1:] == []) for t, n in zip(tensors, nodes))
    out = session.run(None, {"image": np.zeros((3, *session.get_inputs()[0].shape[1:]), np.uint8)})
    assert all(len(value) == 3 for value in out)


def test_labels_stand_beside(repository):
    config = parse_config(repository / "my digits" / "config.pbtxt")
    files = {t.name: t.label_filename for t in config.output if t.label_filename}
    assert files == {"digit": "digit_labels.txt", "tags": "tags_labels.txt"}
    dims = {t.name: list(t.dims) for t in config.output}
    for head, file in files.items():
        lines = (repository / "my digits" / file).read_text().splitlines()
        assert dims[head] == [len(lines)]
    assert (repository / "my digits" / "digit_labels.txt").read_text().split() == list("0123456789")


def test_a_repository_holds_several_models_and_none_is_lost(repository, images, make_images, monkeypatch):
    with pytest.raises(HeadsError, match="pass `overwrite=True`, or another name"):
        export_triton(repository, images, name="my digits")
    before = {p: p.stat().st_mtime_ns for p in repository.rglob("*")}
    monkeypatch.setattr("fastai_heads.export.triton.export_onnx", lambda *_: 1 / 0)
    for options in ({"name": "other"}, {"name": "my digits", "overwrite": True}):
        with pytest.raises(ZeroDivisionError):
            export_triton(repository, images, **options)
    assert {p: p.stat().st_mtime_ns for p in repository.rglob("*")} == before
    (repository / "photos").mkdir()
    with pytest.raises(HeadsError, match="it is no model of Triton"):
        export_triton(repository, images, name="photos", overwrite=True)


def test_a_file_of_rows_and_texts(several_file, tmp_path):
    config = parse_config(export_triton(tmp_path, several_file) / "config.pbtxt")
    with pytest.raises(HeadsError, match="`heads` of a file"):
        export_triton(tmp_path, several_file, name="other", heads="digit")
    dims = {t.name: list(t.dims) for t in config.input}
    assert dims["caption"] == [-1] and len(dims) == 4 and all(n for sizes in dims.values() for n in sizes)


@pytest.mark.parametrize(
    ("options", "said"),
    [({"name": ""}, "`name`"), ({"name": "../x"}, "`name`"), ({"name": 'a"b'}, "`name`"), ({"batch": 0}, "`batch`"),
     ({"wait": -1}, "`wait`")],
)  # fmt: skip
def test_what_is_no_model_of_triton(images, tmp_path, options, said):
    with pytest.raises(HeadsError, match=said):
        export_triton(tmp_path, images, **options)
    assert not list(tmp_path.iterdir())
