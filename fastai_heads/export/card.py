"""The model card of a bundle: what goes in, what comes out, how good it is. No module here imports torch."""

from collections.abc import Mapping
from typing import Any

__all__ = ["write_card"]


def write_card(
    manifest: Mapping[str, Any],  # of a bundle
    measured: Mapping[str, float],  # the last row of the table of training, by name
) -> str:  # Markdown, with the Hub's own header
    "Write the model card."
    title = ", ".join(manifest["answers"])
    head = ["---", "library_name: fastai_heads", "tags: [fastai, multi-task]"]
    head += [f"license: {manifest['license']}"] if manifest.get("license") else []
    lines = [*head, "---", "", f"# One network, {len(manifest['answers'])} heads: {title}", ""]
    lines += [manifest["notes"], ""] if manifest.get("notes") else []
    lines += ["## Use", "", "```python", "from fastai_heads import load_bundle", "predictor = load_bundle(folder)"]
    lines += ["predictor(item)  # an answer for every head", "```", "", "It runs no code of its files.", ""]
    lines += ["## Inputs", "", "| input | kind | |", "|---|---|---|"]
    lines += [f"| {_cell(i['name'])} | {i['kind']} | {_cell(_input(i))} |" for i in manifest["inputs"]]
    lines += ["", "## Heads", "", "| head | answer | reads | classes |", "|---|---|---|---|"]
    for name, answer in manifest["answers"].items():
        reads = ", ".join(manifest["network"]["heads"][name]["reads"])
        vocab = ", ".join(map(str, answer["vocab"] or ())) or "–"
        lines.append(f"| {name} | {answer['answer']} | {_cell(reads)} | {_cell(vocab[:200])} |")
    lines += ["", "## Body", "", _body(manifest["network"]["body"]), ""]
    if measured:
        lines += ["## Measured", "", "On the validation set, after the last epoch of training.", ""]
        lines += ["| | |", "|---|---|", *(f"| {_cell(n)} | {v:.4g} |" for n, v in measured.items()), ""]
    versions = ", ".join(f"{n} {v}" for n, v in manifest["versions"].items())
    return "\n".join([*lines, f"Made with {versions}.", ""])


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _input(said: Mapping[str, Any]) -> str:
    if said["kind"] == "row":
        return ", ".join([*said["cats"], *said["conts"]])
    if said["kind"] == "text":
        return f"tokens of {said['tokenizer']['name']}"
    height, width, channels = said["shape"]
    return f"{said['mode']}, {width}×{height}, {channels} channel(s)" + ("" if said["resized"] else ", not resized")


def _body(said: Mapping[str, Any]) -> str:
    if said["kind"] == "several":
        return "\n".join(f"- {name}: {one.get('same') or _body(one)}" for name, one in said["bodies"].items())
    names = {"row": "TabularBody", "awd_lstm": "AWD_LSTM"}
    return str(said.get("arch") or said.get("model_type") or names.get(said["kind"], said["kind"]))
