"""A depth map as a textured mesh in a binary glTF 2.0 file (GLB), which browsers, Blender and phones open.

glTF's axes are x right, y up and z towards the viewer, in metres: a point (x, y, z) of the camera's frame becomes (x, -y, -z), a half turn
about the x axis, so that the file's own camera position, the origin looking along -z, is where the photograph was taken from.
The material is unlit (``KHR_materials_unlit``): the photograph's colours are light already.

Neighbouring pixels are joined by two triangles each; a triangle over a depth edge would be a curtain between foreground and background
that nothing in the scene is, so those are left out.
"""

from __future__ import annotations

import json
import math
import struct
from typing import Any

import cv2
import numpy as np

from data_shards.schema import Camera
from mdpretrain.inference.point_cloud import has_depth, unproject_pixels

EDGE_RATIO = 1.05  # a triangle whose farthest corner is this much farther than its nearest one lies over a depth edge
MOST_VERTICES = 1_000_000  # of larger maps every n-th row and column is taken; the texture keeps the photograph's size
JPEG_QUALITY = 92
FLOAT, UINT32 = 5126, 5125  # glTF componentType
TO_GLTF_AXES = np.array([1, -1, -1], dtype=np.float32)


def glb_bytes(depth_m: np.ndarray, image: np.ndarray, camera: Camera) -> bytes:
    """The mesh of a depth map, textured with its image.

    Args:
        depth_m: (H, W) metres; pixels without depth have no vertex.
        image: uint8 (H, W, 3) RGB.
        camera: in pixels of that image.

    Returns:
        The file; empty where no neighbouring pixels lie on one surface, so that there is no triangle (glTF has no empty mesh).
    """
    step = mesh_step(*depth_m.shape)
    offset = step // 2
    depth = depth_m[offset::step, offset::step]
    triangles = surface_triangles(depth)
    if not len(triangles):
        return b""
    points = unproject_pixels(depth_m, camera)[offset::step, offset::step].reshape(-1, 3) * TO_GLTF_AXES
    rows, columns = np.meshgrid(np.arange(depth.shape[0]) * step + offset, np.arange(depth.shape[1]) * step + offset, indexing="ij")
    texture = np.stack([(columns + 0.5) / image.shape[1], (rows + 0.5) / image.shape[0]], axis=2).reshape(-1, 2).astype(np.float32)
    used, triangles = np.unique(triangles, return_inverse=True)
    return _glb(points[used], texture[used], triangles.reshape(-1, 3).astype(np.uint32), image)


def mesh_step(height: int, width: int) -> int:
    """The rows and columns from one vertex to the next."""
    return max(1, math.ceil(math.sqrt(height * width / MOST_VERTICES)))


def surface_triangles(depth_m: np.ndarray) -> np.ndarray:
    """(N, 3) numbers of pixels (row * W + column) of the triangles that lie on one surface, counter-clockwise as the camera sees them."""
    height, width = depth_m.shape
    number = np.arange(height * width).reshape(height, width)
    top_left, top_right, bottom_left, bottom_right = number[:-1, :-1], number[:-1, 1:], number[1:, :-1], number[1:, 1:]
    lower = np.stack([top_left, bottom_left, bottom_right], axis=2).reshape(-1, 3)
    upper = np.stack([top_left, bottom_right, top_right], axis=2).reshape(-1, 3)
    triangles = np.concatenate([lower, upper])
    corners = np.where(has_depth(depth_m), depth_m, np.nan).reshape(-1)[triangles]
    return triangles[corners.max(axis=1) <= EDGE_RATIO * corners.min(axis=1)]  # false where a corner is NaN


def _glb(points: np.ndarray, texture: np.ndarray, triangles: np.ndarray, image: np.ndarray) -> bytes:
    done, jpeg = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    assert done, f"cv2 could not encode {image.shape} {image.dtype} as jpg"
    parts = [points.tobytes(), texture.tobytes(), triangles.tobytes(), jpeg.tobytes()]
    content, views = b"", []
    for part in parts:
        views.append({"buffer": 0, "byteOffset": len(content), "byteLength": len(part)})
        content += part + b"\0" * (-len(part) % 4)
    description = _description(views, points, len(texture), triangles.size, len(content))
    text = json.dumps(description, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 4)
    head = struct.pack("<4sII", b"glTF", 2, 12 + 8 + len(text) + 8 + len(content))
    return head + struct.pack("<I4s", len(text), b"JSON") + text + struct.pack("<I4s", len(content), b"BIN\0") + content


def _description(views: list[dict[str, int]], points: np.ndarray, vertices: int, indices: int, total: int) -> dict[str, Any]:
    position = {"bufferView": 0, "componentType": FLOAT, "count": vertices, "type": "VEC3"}
    position |= {"min": points.min(axis=0).tolist(), "max": points.max(axis=0).tolist()}
    material = {
        "pbrMetallicRoughness": {"baseColorTexture": {"index": 0}, "metallicFactor": 0, "roughnessFactor": 1},
        "extensions": {"KHR_materials_unlit": {}},
        "doubleSided": True,
    }
    return {
        "asset": {"version": "2.0", "generator": "mdpretrain"},
        "extensionsUsed": ["KHR_materials_unlit"],
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0}],
        "meshes": [{"name": "depth", "primitives": [{"attributes": {"POSITION": 0, "TEXCOORD_0": 1}, "indices": 2, "material": 0}]}],
        "materials": [material],
        "textures": [{"source": 0, "sampler": 0}],
        "samplers": [{"magFilter": 9729, "minFilter": 9729, "wrapS": 33071, "wrapT": 33071}],  # linear, clamped
        "images": [{"bufferView": 3, "mimeType": "image/jpeg"}],
        "accessors": [
            position,
            {"bufferView": 1, "componentType": FLOAT, "count": vertices, "type": "VEC2"},
            {"bufferView": 2, "componentType": UINT32, "count": indices, "type": "SCALAR"},
        ],
        "bufferViews": views,
        "buffers": [{"byteLength": total}],
    }
