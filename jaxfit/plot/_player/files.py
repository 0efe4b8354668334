"""Write frames as files."""

from __future__ import annotations

import itertools
import pathlib
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from PIL import Image

Writer = Callable[[Iterator[np.ndarray], float, pathlib.Path], None]


def gif(frames: Iterator[np.ndarray], interval: float, path: pathlib.Path) -> None:
    """Write a GIF, whose frames share 256 colours."""
    codes: list[np.ndarray] = []
    counts = np.zeros(1 << 15, np.int64)
    colors = _cube()  # one for each code, of those that occur
    for frame in map(_opaque, frames):
        code = _code(frame)
        codes.append(code)
        if len(codes) % 8 == 1:
            counts += np.bincount(code.ravel(), minlength=len(counts))
            colors[code.ravel()] = frame.reshape(-1, 3)
    # Pillow chooses the palette for a picture in which each colour that occurs is seen, the more
    # often the more pixels it has; then every colour is looked up once, in place of every pixel.
    seen = np.flatnonzero(counts)
    sample = np.repeat(colors[seen], np.ceil(np.sqrt(counts[seen])).astype(int), axis=0)
    chosen = Image.fromarray(sample[None]).quantize(
        256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE
    )
    nearest = Image.fromarray(colors[None]).quantize(palette=chosen, dither=Image.Dither.NONE)
    table = np.asarray(nearest)[0]
    images = [Image.fromarray(table[code]) for code in codes]
    for image in images:
        image.putpalette(chosen.getpalette() or [])
    _save(images, interval, path, "GIF", optimize=False)


def webp(frames: Iterator[np.ndarray], interval: float, path: pathlib.Path) -> None:
    """Write a WebP without loss."""
    images = [Image.fromarray(_opaque(frame).copy()) for frame in frames]
    _save(images, interval, path, "WEBP", lossless=True, quality=0, method=0)


def mp4(frames: Iterator[np.ndarray], interval: float, path: pathlib.Path) -> None:
    """Write an MP4 in H.264, which all browsers and slides play."""
    try:
        import imageio_ffmpeg
    except ImportError as error:
        raise ImportError(
            "saving .mp4 needs imageio-ffmpeg, which is not installed: "
            'run pip install "jaxfit-train[video]", or save .gif, .webp or .html.'
        ) from error
    first = _even(next(frames))
    height, width = first.shape[:2]
    read = f"-f rawvideo -pix_fmt rgb24 -s {width}x{height} -r {1000 / interval} -i -".split()
    made = "-c:v libx264 -preset veryfast -crf 18 -tune animation -pix_fmt yuv420p".split()
    quiet = "-y -loglevel error".split()
    command = [imageio_ffmpeg.get_ffmpeg_exe(), *quiet, *read, *made, str(path)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as process:
        assert process.stdin is not None and process.stderr is not None  # they are pipes
        try:
            for frame in itertools.chain([first], map(_even, frames)):
                process.stdin.write(frame.tobytes())
            process.stdin.close()
        except BrokenPipeError:  # it has said why
            pass
        said = process.stderr.read().decode(errors="replace").strip()
    if process.returncode:
        raise OSError(f"ffmpeg could not write {path}: {said}")


def _even(frame: np.ndarray) -> np.ndarray:
    """Return a frame on white with even height and width, as H.264 has them."""
    height, width = frame.shape[:2]
    odd = (0, height % 2), (0, width % 2), (0, 0)
    padded: np.ndarray = np.pad(_opaque(frame), odd, mode="edge")
    return padded


def png(frames: Iterator[np.ndarray], interval: float, path: pathlib.Path) -> None:
    """Write the first of the frames as a PNG."""
    Image.fromarray(next(frames).copy()).save(path)


WRITERS: dict[str, Writer] = {".gif": gif, ".mp4": mp4, ".png": png, ".webp": webp}


def _save(
    images: list[Image.Image], interval: float, path: pathlib.Path, kind: str, **options: Any
) -> None:
    first, *others = images
    first.save(
        path,
        format=kind,
        save_all=True,
        append_images=others,
        duration=round(interval),
        loop=0,
        **options,
    )


def _opaque(frame: np.ndarray) -> np.ndarray:
    """Return a frame on white, ``[height, width, 3]``."""
    if (alpha := frame[..., 3:]).min() == 255:
        return frame[..., :3]
    mixed: np.ndarray = (frame[..., :3] * (alpha / 255.0) + (255 - alpha)).round()
    return mixed.astype(np.uint8)


def _code(frame: np.ndarray) -> np.ndarray:
    """Return five bits of each of red, green and blue as one number, ``[height, width]``."""
    red, green, blue = np.moveaxis(frame.astype(np.uint16) >> 3, -1, 0)
    code: np.ndarray = red << 10 | green << 5 | blue
    return code


def _cube() -> np.ndarray:
    """Return a colour for each code, ``[32768, 3]``."""
    levels = (np.arange(32) * 255 / 31).round().astype(np.uint8)
    return np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1).reshape(-1, 3)
