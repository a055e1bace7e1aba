"""The picture of tools.tsne."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from matplotlib.figure import Figure
from torch import Tensor

from tools.pages import COLOURS

MARKERS = "osD^vP*X<>hd"  # with up to 96 identities, colour and marker are unique


class Cloud(NamedTuple):
    """Features of one network in the plane."""

    name: str
    places: Tensor  # [N, 2]
    pids: list[int]
    names: Mapping[int, str]  # of identities
    every: int = 0  # so many points belong to a prompt, itself first; 0: they are images


def tsne_figure(clouds: Sequence[Cloud]) -> Figure:
    """A panel for each network, and one legend."""
    figure = Figure(figsize=(4.5 * len(clouds) + 1.2, 4.6), layout="constrained")
    panels = figure.subplots(1, len(clouds), squeeze=False)[0]
    identities = sorted({pid for cloud in clouds for pid in cloud.pids})
    names = {pid: name for cloud in clouds for pid, name in cloud.names.items()}
    for axes, cloud in zip(panels, clouds, strict=True):
        for number, pid in enumerate(identities):
            rows = [row for row, own in enumerate(cloud.pids) if own == pid]
            marker = MARKERS[(number + number // len(COLOURS)) % len(MARKERS)]
            colour = COLOURS[number % len(COLOURS)]
            style = {"marker": marker, "color": colour, "linewidths": 0.3, "edgecolors": "black"}
            axes.scatter(*cloud.places[rows].T.numpy(), s=18, label=names[pid], **style)
            first = [row for row in rows if cloud.every and row % cloud.every == 0]
            axes.scatter(*cloud.places[first].T.numpy(), s=110, **style)
        axes.set(xticks=[], yticks=[])
        axes.set_title(cloud.name, fontsize=8, parse_math=False)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", title="identity", fontsize=7, title_fontsize=7)
    return figure
