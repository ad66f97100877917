"""Pieces of the HTML pages that this project writes: each page is one file that needs nothing beside it, its pictures inside."""

from __future__ import annotations

import base64
import pathlib
from collections.abc import Iterable
from html import escape

import cv2
import numpy as np

from data_shards.colour import DepthScale

KINDS = {"png": "image/png", "jpg": "image/jpeg"}


def style() -> str:
    """The pages' style sheet."""
    return pathlib.Path(__file__).with_name("page.css").read_text(encoding="utf-8")


def document(title: str, body: str, script: str = "") -> str:
    """A whole page: ``title`` as text, ``body`` as HTML that stands below the heading, ``script`` run at its end."""
    name = escape(title)
    head = f'<meta charset="utf-8">\n<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{name}</title>'
    run = f"<script>\n{script}\n</script>\n" if script else ""
    main = f"<main>\n<h1>{name}</h1>\n{body}</main>"
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n{head}\n<style>\n{style()}</style>\n</head>\n<body>\n{main}\n{run}</body>\n</html>\n'
    )


def data_uri(data: bytes, kind: str) -> str:
    """``data:`` address of an encoded picture; ``kind`` is a MIME type."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def picture_uri(picture: np.ndarray, kind: str = "png", quality: int = 95) -> str:
    """A uint8 RGB picture as a data URI, png (exact) or jpg of this quality."""
    options = [cv2.IMWRITE_JPEG_QUALITY, quality] if kind == "jpg" else []
    done, encoded = cv2.imencode(f".{kind}", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), options)
    assert done, f"cv2 could not encode {picture.shape} as {kind}"
    return data_uri(encoded.tobytes(), KINDS[kind])


def picture_cell(caption: str, uri: str) -> str:
    """A picture with its caption, for a grid of class ``cells``."""
    return f'<figure><img src="{uri}" alt="{escape(caption)}"><figcaption>{escape(caption)}</figcaption></figure>'


def colour_bar(caption: str, stops: Iterable[str], ticks: Iterable[tuple[float, str]]) -> str:
    """A labelled bar: CSS colours from left to right, ticks as (place in [0, 1], text)."""
    marks = "".join(f'<span style="left:{100 * place:.1f}%">{escape(text)}</span>' for place, text in ticks)
    return (
        f'<div class="bar"><div class="caption">{escape(caption)}</div>'
        f'<div class="strip" style="background:linear-gradient(to right, {", ".join(stops)})"></div><div class="ticks">{marks}</div></div>'
    )


def depth_bar(scale: DepthScale, caption: str) -> str:
    """The colour bar of depth, with ticks in metres."""
    return colour_bar(caption, scale.gradient(), [(position, f"{value:g}") for position, value in scale.ticks()])
