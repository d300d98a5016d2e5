"""Layout -> stain maps at `DRAW_MPP`: how much haematoxylin, eosin and yellow lies in every pixel."""

from dataclasses import dataclass

import cv2
import numpy as np

from mil.synthetic import grounds
from mil.synthetic import nuclei as nu
from mil.synthetic.fibres import draw_fibres
from mil.synthetic.layout import LAYOUT_UM, Layout, Traits
from mil.synthetic.noise import Field, enlarge, grain, ramp, smooth_noise
from mil.synthetic.nuclei import DRAW_MPP
from mil.synthetic.placing import place

SCALE = round(LAYOUT_UM / DRAW_MPP)


@dataclass(frozen=True)
class Stained:
    """Concentrations of the dyes, float32 (height, width) at `DRAW_MPP`; 0 is glass."""

    haematoxylin: Field
    eosin: Field
    yellow: Field
    """Saffron of collagen (where a hospital uses it) and the orange of red cells."""


def draw(layout: Layout, traits: Traits, banks: dict[nu.NucleusKind, nu.Bank], stream: np.random.Generator) -> Stained:
    """Stain one piece of tissue, its nuclei taken from `banks`."""
    shape = (layout.shape[0] * SCALE, layout.shape[1] * SCALE)
    fibres = draw_fibres(layout.flow, LAYOUT_UM, shape, stream.uniform(0.1, 0.6), stream)
    edge = smooth_noise(stream, shape, 12 / DRAW_MPP, 3) * np.float32(3.0)  # microns; no border is smooth
    groups = place(layout, fibres.angle, traits, stream)
    nest_um = enlarge(layout.nest, shape, smoothly=True) + edge
    nest = ramp(nest_um, 3.0)
    lymph = ramp(enlarge(layout.lymphocytes, shape) + 2 * edge, 16.0) * (1 - np.float32(0.75) * nest)
    necrosis = ramp(enlarge(layout.necrosis, shape) + 2 * edge, 10.0)
    fat = ramp(enlarge(layout.fat, shape) + edge, 3.0)

    h, e, yellow = grounds.stroma(fibres, shape, stream)
    _mix(h, e, lymph, *grounds.lymphoid(shape, stream))
    _mix(h, e, nest, *grounds.cytoplasm(groups[0].centres, shape, stream))
    _mix(h, e, necrosis, *grounds.necrotic(shape, stream))
    _mix(h, e, fat, *grounds.adipocytes(fat, shape, stream))
    yellow *= (1 - nest) * (1 - lymph) * (1 - necrosis) * (1 - fat)
    _retract(h, e, yellow, nest_um, stream)
    grounds.vessels(layout.vessels, h, e, yellow, stream)
    grounds.ducts(layout.ducts, h, e, yellow, stream)
    for group in groups:
        nu.lay(group, banks[group.kind], stream, h, e)
    thickness = 1 + np.float32(0.10) * smooth_noise(stream, shape, 300 / DRAW_MPP, 2)
    thickness *= ramp(enlarge(layout.tissue, shape, smoothly=True) + edge, 2.0)
    mottle = 1 + np.float32(0.09) * grain(stream, shape, 0.8) + np.float32(0.07) * grain(stream, shape, 1.8)
    for dye, texture in ((h, mottle), (e, mottle[::-1]), (yellow, mottle[:, ::-1])):
        dye *= thickness
        dye *= texture
    return Stained(*(cv2.GaussianBlur(dye, (0, 0), 0.6) for dye in (h, e, yellow)))


def _mix(h: Field, e: Field, weight: Field, other_h: Field, other_e: Field) -> None:
    """Blend another tissue's dyes in, in place."""
    h += weight * (other_h - h)
    e += weight * (other_e - e)


def _retract(h: Field, e: Field, yellow: Field, nest_um: Field, stream: np.random.Generator) -> None:
    """Here and there a nest has shrunk off its stroma and left a bright cleft."""
    here = ramp(smooth_noise(stream, (h.shape[0], h.shape[1]), 90 / DRAW_MPP, 2) - np.float32(0.7), 0.8)
    cleft = 1 - here * np.exp(-(((nest_um + np.float32(3.0)) / np.float32(2.2)) ** 2)) * np.float32(0.95)
    for dye in (h, e, yellow):
        dye *= cleft
