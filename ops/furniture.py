"""Procedural furniture and plain solids: one random ``Solid`` of a category for every seed.

The y axis points up and +x to the front, as in the first edition of ShapeNet. No part is thinner than 0.045 of the
longest edge, so that a grid of 32³ cell centres misses nothing, and parts reach into one another rather than touch, so
that no two of their faces coincide.
"""

from collections.abc import Callable

import numpy as np

from ops.solids import Part, Solid, box, ellipsoid, frustum, turn

Draw = Callable[[float, float], float]
Color = tuple[float, float, float]


def make_solid(category: str, seed: list[int]) -> Solid:
    """The object of a category that belongs to a seed, centred, with 1 as its longest edge.

    Raises:
        ValueError: an unknown category.
    """
    if category not in CATEGORIES:
        raise ValueError(f"there is no category {category!r} of procedural objects; there are {', '.join(CATEGORIES)}")
    generator = np.random.default_rng([*seed, *category.encode()])
    colors = [_color(generator) for _ in range(3)]
    return Solid.of(CATEGORIES[category](lambda low, high: float(generator.uniform(low, high)), colors)).normalized()


def _color(generator: np.random.Generator) -> Color:
    # a hue between grey and saturated, never so dark that shading is lost
    hue, strength, value = generator.random(), generator.uniform(0.1, 0.75), generator.uniform(0.5, 0.95)
    ramp = np.abs((hue * 6 + np.array([0.0, 4.0, 2.0])) % 6 - 3) - 1
    return tuple((value * (1 - strength * (1 - ramp.clip(0, 1)))).tolist())


def _legs(draw: Draw, color: Color, x: float, z: float, height: float, thick: float) -> list[Part]:
    """Four legs under the corners (±x, ±z), square or round, straight or spread, from the floor up to ``height``."""
    is_round, spread = draw(0, 1) < 0.5, draw(0, 0.08) if draw(0, 1) < 0.4 else 0.0
    legs = []
    for sign_x in (-1, 1):
        for sign_z in (-1, 1):
            foot = (sign_x * (x + spread), 0.0, sign_z * (z + spread))
            top = (sign_x * x, height, sign_z * z)
            if is_round or spread:
                legs.append(frustum(foot, top, 0.8 * thick, thick, color))
            else:
                legs.append(box((top[0], height / 2, top[2]), (0.85 * thick, height / 2, 0.85 * thick), color))
    return legs


def _chair(draw: Draw, colors: list[Color]) -> list[Part]:
    width, depth, seat = draw(0.22, 0.30), draw(0.21, 0.28), draw(0.38, 0.52)
    slab, leg, back = draw(0.03, 0.05), draw(0.032, 0.042), draw(0.42, 0.62)
    parts = [box((0, seat, 0), (depth, slab, width), colors[0])]
    parts += _legs(draw, colors[1], depth - leg, width - leg, seat, leg)
    lean = turn(2, draw(0, 14))
    # the back leans about the rear edge of the seat
    along = lean @ np.array([0.0, back / 2, 0.0])
    rear = np.array([-depth + 0.035, seat, 0.0])
    if draw(0, 1) < 0.6:
        parts.append(box(tuple(rear + along), (0.03, back / 2, 0.95 * width), colors[2], lean))
    else:
        top = rear + 2 * along
        for side in (-0.85, 0.0, 0.85) if draw(0, 1) < 0.5 else (-0.85, 0.85):
            aside = np.array([0, 0, side * width])
            parts.append(frustum(rear + aside, top + aside, 0.033, 0.03, colors[1]))
        parts.append(box(tuple(rear + 1.75 * along), (0.034, 0.16 * back, 0.93 * width), colors[2], lean))
    if draw(0, 1) < 0.35:
        rest = seat + draw(0.17, 0.24)
        for side in (-1, 1):
            parts.append(box((0, rest, side * width), (depth, 0.03, 0.04), colors[2]))
            parts.append(
                box((0.7 * depth, (rest + seat) / 2, side * width), (0.03, (rest - seat) / 2, 0.032), colors[1])
            )
    return parts


def _table(draw: Draw, colors: list[Color]) -> list[Part]:
    width, depth, height, slab = draw(0.38, 0.55), draw(0.25, 0.45), draw(0.35, 0.70), draw(0.03, 0.05)
    if draw(0, 1) < 0.35:
        radius = draw(0.38, 0.5)
        return [
            frustum((0, height - slab, 0), (0, height + slab, 0), radius, radius, colors[0]),
            frustum((0, 0.02, 0), (0, height, 0), draw(0.05, 0.10), draw(0.05, 0.08), colors[1]),
            frustum((0, 0, 0), (0, 0.055, 0), draw(0.55, 0.75) * radius, 0.4 * radius, colors[1]),
        ]
    leg = draw(0.03, 0.05)
    parts = [box((0, height, 0), (depth, slab, width), colors[0])]
    parts += _legs(draw, colors[1], depth - 1.3 * leg, width - 1.3 * leg, height, leg)
    if draw(0, 1) < 0.4:
        parts.append(box((0, draw(0.25, 0.5) * height, 0), (depth - leg, 0.03, width - leg), colors[2]))
    return parts


def _bench(draw: Draw, colors: list[Color]) -> list[Part]:
    width, depth, height = 0.5, draw(0.13, 0.20), draw(0.20, 0.30)
    parts = [box((0, height, 0), (depth, draw(0.026, 0.04), width), colors[0])]
    for side in (-1, 1):
        end = (0, height / 2, side * draw(0.32, 0.44))
        parts.append(box(end, (0.85 * depth, height / 2, draw(0.028, 0.06)), colors[1]))
    if draw(0, 1) < 0.6:
        back, lean = draw(0.18, 0.30), turn(2, draw(0, 15))
        foot = np.array([-depth + 0.03, height, 0.0])
        parts.append(box(tuple(foot + lean @ [0, back / 2, 0]), (0.028, back / 2, 0.97 * width), colors[0], lean))
    return parts


def _sofa(draw: Draw, colors: list[Color]) -> list[Part]:
    depth, seat, back, arm = draw(0.20, 0.26), draw(0.15, 0.22), draw(0.34, 0.46), draw(0.05, 0.09)
    parts = [box((0, seat / 2, 0), (depth, seat / 2, 0.47), colors[0])]
    lean = turn(2, draw(0, 10))
    parts.append(box((-depth + 0.06, back / 2 + 0.02, 0), (draw(0.05, 0.08), back / 2, 0.46), colors[0], lean))
    top = seat + draw(0.06, 0.14)
    for side in (-1, 1):
        if draw(0, 1) < 0.5:
            parts.append(box((0.01, top / 2 + 0.01, side * (0.5 - arm)), (depth, top / 2, arm), colors[1]))
        else:
            z = side * (0.5 - arm)
            parts.append(box((0.005, top / 2 + 0.005, z), (0.97 * depth, top / 2, 0.8 * arm), colors[1]))
            parts.append(frustum((-depth, top, z), (depth + 0.01, top, z), arm, arm, colors[1]))
    for side in (-1, 1) if draw(0, 1) < 0.6 else ():
        cushion = (0.05, seat + 0.02, side * 0.2)
        parts.append(ellipsoid(cushion, (0.75 * depth, 0.06, 0.19), colors[2]))
    return parts


def _cabinet(draw: Draw, colors: list[Color]) -> list[Part]:
    depth, height, width, foot = draw(0.13, 0.25), draw(0.24, 0.5), draw(0.22, 0.5), draw(0.04, 0.10)
    parts = [box((0, foot + height, 0), (depth, height, width), colors[0])]
    parts += _legs(draw, colors[1], 0.8 * depth, 0.85 * width, foot + 0.02, draw(0.03, 0.04))
    rows = 1 + int(draw(0, 3))
    for row in range(rows):
        y = foot + height * (2 * row + 1) / rows
        half = 0.85 * height / rows
        for side in (-1, 1) if width > 0.3 else (0,):
            z = side * 0.5 * width
            front = 0.42 * width if side else 0.85 * width
            parts.append(box((depth, y, z), (0.025, half, front), colors[1]))
            parts.append(ellipsoid((depth + 0.035, y, z - side * 0.6 * front), (0.035, 0.03, 0.03), colors[2]))
    if draw(0, 1) < 0.5:
        parts.append(box((0.01, foot + 2 * height, 0), (depth + 0.02, 0.026, width + 0.02), colors[1]))
    return parts


def _lamp(draw: Draw, colors: list[Color]) -> list[Part]:
    base, pole = draw(0.13, 0.24), draw(0.026, 0.04)
    below, above, shade = draw(0.17, 0.30), draw(0.08, 0.17), draw(0.22, 0.36)
    parts = [
        frustum((0, 0, 0), (0, draw(0.05, 0.09), 0), base, draw(0.6, 1.0) * base, colors[0]),
        frustum((0, 0.03, 0), (0, 1 - shade / 2, 0), pole, pole, colors[1]),
        frustum((0, 1 - shade, 0), (0, 1, 0), below, above, colors[2]),
    ]
    if draw(0, 1) < 0.5:
        parts.append(
            ellipsoid((0, draw(0.18, 0.4), 0), (draw(0.06, 0.15), draw(0.06, 0.14), draw(0.06, 0.15)), colors[0])
        )
    return parts


def _solid(draw: Draw, colors: list[Color]) -> list[Part]:
    parts = []
    for number in range(1 + int(draw(0, 3))):
        center = (0.0, 0.0, 0.0) if number == 0 else (draw(-0.3, 0.3), draw(-0.3, 0.3), draw(-0.3, 0.3))
        half = (draw(0.12, 0.4), draw(0.12, 0.4), draw(0.12, 0.4))
        kind, rotation = int(draw(0, 3)), turn(1, draw(0, 180)) @ turn(0, draw(-30, 30))
        if kind == 0:
            parts.append(box(center, half, colors[number], rotation))
        elif kind == 1:
            parts.append(ellipsoid(center, half, colors[number], rotation))
        else:
            axis = rotation[:, 1] * half[1]
            parts.append(frustum(center - axis, center + axis, half[0], draw(0.05, 1.0) * half[0], colors[number]))
    return parts


CATEGORIES: dict[str, Callable[[Draw, list[Color]], list[Part]]] = {
    "bench": _bench,
    "cabinet": _cabinet,
    "chair": _chair,
    "lamp": _lamp,
    "sofa": _sofa,
    "solid": _solid,
    "table": _table,
}
"""What can be made, by the name of its category."""
