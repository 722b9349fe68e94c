"""Compiled loops over the parts of a solid; :mod:`ops.solids` runs them on arrays. The machine code is cached.

Arguments that all kernels share describe K convex parts: ``kinds`` (K,) one of ``BOX``, ``ELLIPSOID``, ``FRUSTUM``;
``sizes`` (K, 3), half edges of a box, half axes of an ellipsoid, and of a frustum, which stands along its y axis, the
radius below, the radius above and half the height; ``centers`` (K, 3); ``rotations`` (K, 3, 3), part to world.
"""

import math

import numpy as np
from numba import njit

BOX, ELLIPSOID, FRUSTUM = 0, 1, 2

_OPTIONS = {"nogil": True, "cache": True, "error_model": "numpy"}
_MISS = np.inf


@njit(**_OPTIONS)
def part_level(kind, size, x, y, z):
    """Negative inside a part, zero on its surface, positive outside; a point in the part's own frame."""
    if kind == BOX:
        return max(abs(x) - size[0], abs(y) - size[1], abs(z) - size[2])
    if kind == ELLIPSOID:
        return math.sqrt((x / size[0]) ** 2 + (y / size[1]) ** 2 + (z / size[2]) ** 2) - 1.0
    slope = (size[1] - size[0]) / (2 * size[2])
    return max(math.hypot(x, z) - 0.5 * (size[0] + size[1]) - slope * y, abs(y) - size[2])


@njit(**_OPTIONS)
def levels(points, skipped, kinds, sizes, centers, rotations, out):
    """Write the least level over all parts, but for part ``skipped[i]`` of point i, into ``out`` (N,)."""
    for i in range(len(points)):
        least = np.inf
        for k in range(len(kinds)):
            if k == skipped[i]:
                continue
            x, y, z = points[i, 0] - centers[k, 0], points[i, 1] - centers[k, 1], points[i, 2] - centers[k, 2]
            r = rotations[k]
            level = part_level(
                kinds[k],
                sizes[k],
                r[0, 0] * x + r[1, 0] * y + r[2, 0] * z,
                r[0, 1] * x + r[1, 1] * y + r[2, 1] * z,
                r[0, 2] * x + r[1, 2] * y + r[2, 2] * z,
            )
            least = min(least, level)
        out[i] = least


@njit(**_OPTIONS)
def _enter_box(size, o, d):
    near, far, axis = -np.inf, np.inf, 0
    for i in range(3):
        if abs(d[i]) < 1e-14:
            if abs(o[i]) > size[i]:
                return _MISS, 0
            continue
        first, last = (-size[i] - o[i]) / d[i], (size[i] - o[i]) / d[i]
        if first > last:
            first, last = last, first
        if first > near:
            near, axis = first, i
        far = min(far, last)
    return (near, axis) if 0 < near <= far else (_MISS, 0)


@njit(**_OPTIONS)
def _enter_ellipsoid(size, o, d):
    a, b, c = 0.0, 0.0, -1.0
    for i in range(3):
        oi, di = o[i] / size[i], d[i] / size[i]
        a += di * di
        b += oi * di
        c += oi * oi
    root = b * b - a * c
    if root <= 0:
        return _MISS
    t = (-b - math.sqrt(root)) / a
    return t if t > 0 else _MISS


@njit(**_OPTIONS)
def _enter_frustum(size, o, d):
    """Distance, and where: -1 and 1 are the lower and the upper disc, 0 is the side."""
    height, slope, middle = size[2], (size[1] - size[0]) / (2 * size[2]), 0.5 * (size[0] + size[1])
    best, where = _MISS, 0
    if abs(d[1]) > 1e-14:
        for side in (-1, 1):
            t = (side * height - o[1]) / d[1]
            radius = size[1] if side > 0 else size[0]
            if 0 < t < best and math.hypot(o[0] + t * d[0], o[2] + t * d[2]) <= radius:
                best, where = t, side
    # x^2 + z^2 = (middle + slope y)^2
    level = middle + slope * o[1]
    a = d[0] * d[0] + d[2] * d[2] - slope * slope * d[1] * d[1]
    b = o[0] * d[0] + o[2] * d[2] - slope * d[1] * level
    c = o[0] * o[0] + o[2] * o[2] - level * level
    root = b * b - a * c
    if root < 0:
        return best, where
    root = math.sqrt(root)
    for sign in (-1.0, 1.0):
        t = -c / (2 * b) if abs(a) < 1e-14 else (-b + sign * root) / a
        y = o[1] + t * d[1]
        if 0 < t < best and abs(y) <= height and middle + slope * y >= 0:
            best, where = t, 0
    return best, where


@njit(**_OPTIONS)
def _normal(kind, size, p, axis, where, n):
    """Write the outward normal at a point ``p`` of a part's surface into ``n``, both in the part's frame."""
    n[:] = 0.0
    if kind == BOX:
        n[axis] = 1.0 if p[axis] > 0 else -1.0
        return
    if kind == FRUSTUM and where != 0:
        n[1] = where
        return
    if kind == ELLIPSOID:
        for i in range(3):
            n[i] = p[i] / (size[i] * size[i])
    else:
        n[0], n[2] = p[0], p[2]
        n[1] = -math.hypot(p[0], p[2]) * (size[1] - size[0]) / (2 * size[2])
    length = math.sqrt(n[0] * n[0] + n[1] * n[1] + n[2] * n[2])
    for i in range(3):
        n[i] /= length


@njit(**_OPTIONS)
def _first_hit(direction, parts, num_parts, kinds, sizes, rotations, origins, scratch, normal):
    """Number of the part that a ray from outside enters first, or -1; the outward normal there goes to ``normal``.

    Only ``parts[:num_parts]`` are tried; ``origins`` (K, 3) is the ray's origin in each part's frame and ``scratch``
    (3, 3) is room to work in.
    """
    best, part = _MISS, -1
    d, p, n = scratch[0], scratch[1], scratch[2]
    for number in range(num_parts):
        k = parts[number]
        o, r = origins[k], rotations[k]
        for i in range(3):
            d[i] = r[0, i] * direction[0] + r[1, i] * direction[1] + r[2, i] * direction[2]
        axis, where = 0, 0
        if kinds[k] == BOX:
            t, axis = _enter_box(sizes[k], o, d)
        elif kinds[k] == ELLIPSOID:
            t = _enter_ellipsoid(sizes[k], o, d)
        else:
            t, where = _enter_frustum(sizes[k], o, d)
        if t < best:
            best, part = t, k
            for i in range(3):
                p[i] = o[i] + t * d[i]
            _normal(kinds[k], sizes[k], p, axis, where, n)
            for i in range(3):
                normal[i] = r[i, 0] * n[0] + r[i, 1] * n[1] + r[i, 2] * n[2]
    return part


@njit(**_OPTIONS)
def _windows(kinds, sizes, rotations, origins, intrinsics, pose, out):
    """Write what pixels each part can appear in, (K, 4): first and last column, first and last row."""
    for k in range(len(kinds)):
        out[k, 0], out[k, 1], out[k, 2], out[k, 3] = np.inf, -np.inf, np.inf, -np.inf
        half = sizes[k].copy()
        if kinds[k] == FRUSTUM:
            half[0], half[1], half[2] = max(sizes[k, 0], sizes[k, 1]), sizes[k, 2], max(sizes[k, 0], sizes[k, 1])
        for corner in range(8):
            relative = np.zeros(3)
            for j in range(3):
                local = (half[j] if corner >> j & 1 else -half[j]) - origins[k, j]
                for i in range(3):
                    relative[i] += rotations[k, i, j] * local
            x, y, z = 0.0, 0.0, 0.0
            for i in range(3):
                x += pose[i, 0] * relative[i]
                y += pose[i, 1] * relative[i]
                z += pose[i, 2] * relative[i]
            # behind the camera a corner says nothing of where the part appears
            if z <= 0:
                out[k, 0], out[k, 1], out[k, 2], out[k, 3] = -np.inf, np.inf, -np.inf, np.inf
                break
            u, v = intrinsics[0, 0] * x / z + intrinsics[0, 2], intrinsics[1, 1] * y / z + intrinsics[1, 2]
            out[k, 0], out[k, 1] = min(out[k, 0], u), max(out[k, 1], u)
            out[k, 2], out[k, 3] = min(out[k, 2], v), max(out[k, 3], v)


@njit(**_OPTIONS)
def render(kinds, sizes, centers, rotations, colors, intrinsics, pose, samples, out):
    """Write a picture of matt parts, (H, W, 4) uint8 with straight alpha, as renderers write PNG files.

    ``colors`` (K, 3) sRGB in [0, 1]; ``intrinsics`` (3, 3) and ``pose`` (4, 4), camera to world, OpenCV axes;
    ``samples`` squared rays a pixel.
    """
    origins = np.empty((len(kinds), 3))
    for k in range(len(kinds)):
        for i in range(3):
            origins[k, i] = 0.0
            for j in range(3):
                origins[k, i] += rotations[k, j, i] * (pose[j, 3] - centers[k, j])
    direction, normal, scratch, color = np.empty(3), np.empty(3), np.empty((3, 3)), np.empty(3)
    windows, parts = np.empty((len(kinds), 4)), np.empty(len(kinds), np.int64)
    _windows(kinds, sizes, rotations, origins, intrinsics, pose, windows)
    key, fill = (0.36, 0.80, 0.48), (-0.80, 0.10, 0.59)
    for row in range(out.shape[0]):
        for column in range(out.shape[1]):
            num_parts = 0
            for k in range(len(kinds)):
                if windows[k, 0] - 1 < column < windows[k, 1] and windows[k, 2] - 1 < row < windows[k, 3]:
                    parts[num_parts] = k
                    num_parts += 1
            if num_parts == 0:
                out[row, column] = 0
                continue
            color[:] = 0.0
            hits = 0
            for sample in range(samples * samples):
                u = column + (sample % samples + 0.5) / samples
                v = row + (sample // samples + 0.5) / samples
                x = (u - intrinsics[0, 2]) / intrinsics[0, 0]
                y = (v - intrinsics[1, 2]) / intrinsics[1, 1]
                length = math.sqrt(x * x + y * y + 1.0)
                for i in range(3):
                    direction[i] = (pose[i, 0] * x + pose[i, 1] * y + pose[i, 2]) / length
                part = _first_hit(direction, parts, num_parts, kinds, sizes, rotations, origins, scratch, normal)
                if part < 0:
                    continue
                hits += 1
                light = 0.40
                light += 0.50 * max(0.0, key[0] * normal[0] + key[1] * normal[1] + key[2] * normal[2])
                light += 0.25 * max(0.0, fill[0] * normal[0] + fill[1] * normal[1] + fill[2] * normal[2])
                for i in range(3):
                    color[i] += colors[part, i] * light
            for i in range(3):
                mean = color[i] / max(hits, 1)
                out[row, column, i] = np.uint8(min(mean, 1.0) * 255.0 + 0.5)
            out[row, column, 3] = np.uint8(hits * 255.0 / (samples * samples) + 0.5)
