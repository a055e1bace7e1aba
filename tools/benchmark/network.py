"""A network for the parts that train one, with random weights."""

from __future__ import annotations

import torch

from model import tiny_clip
from model.pretrained import QUICK_GELU, build_clip
from model.svllreid import SvllReid, build_network
from tools.benchmark.measure import Setting

SIZE, STRIDE = (256, 128), (12, 12)  # height and width of people, and overlapping patches, as published


def size_of(setting: Setting) -> tuple[int, int]:
    """Height and width of its images."""
    return tiny_clip.IMAGE_SIZE if setting.name == tiny_clip.NAME else SIZE


def make_network(setting: Setting) -> SvllReid:
    """SVLL-ReID's whole network for the identities of a batch."""
    stride = tiny_clip.STRIDE if setting.name == tiny_clip.NAME else STRIDE
    architecture = {
        **{"name": setting.name, "stride": list(stride), "image_size": list(size_of(setting))},
        **{"num_pids": setting.identities, "num_cams": 1, "num_views": 1, "sie_camera": False, "sie_view": False},
        **{"sentences": True, "template": "A photo of a {} person."},
        **{"language_ssl": True, "vision_ssl": True, "ssl_hidden": 4096, "ssl_out": 256},
    }
    torch.manual_seed(0)
    return build_network(architecture, build_clip(setting.name, QUICK_GELU)).to(setting.device)
