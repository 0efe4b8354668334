"""Frames in which only what moves is drawn again are those that matplotlib draws whole."""

import base64
import itertools
import json
import re
import subprocess
import sys
import types
import zlib
from xml.etree import ElementTree

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.animation import Animation, FuncAnimation
from matplotlib.backends.backend_svg import RendererSVG
from PIL import Image

from jaxfit import plot
from jaxfit.plot import player
from jaxfit.plot._player import borrowed, film, page, pixels, sheets, studio
from tests.plot import animations

every = pytest.mark.parametrize("make", animations.ALL, ids=lambda make: make.__name__)


def frames_of(animation):
    return borrowed.frames_of(animation)


def pixels_of_matplotlib(animation, dpi=72):
    """The frames that matplotlib draws whole, in the layout of the first."""
    figure, frames = animation._fig, frames_of(animation)
    with studio.placed_on(figure, studio.PixelCanvas, dpi):
        borrowed.start(animation, frames)
        for _ in range(4):
            figure.draw_without_rendering()
    figure.set_layout_engine("none")
    return pixels.saved(animation, dpi)


@every
def test_pixels_are_those_of_matplotlib(make):
    animation = make()
    drawn = [frame.copy() for frame in pixels.pixels(animation, frames_of(animation), 72)]
    expected = list(pixels_of_matplotlib(make()))
    assert len(drawn) == len(expected) > 3
    for one, other in zip(drawn, expected, strict=True):
        assert one.shape == other.shape
        apart = np.abs(one.astype(int) - other).max(axis=-1)
        assert apart.max() <= 3, (apart > 3).sum()
    assert any((one != drawn[0]).any() for one in drawn)


def shown(recorded, k):
    """The SVG of a frame, from what the player is given."""
    slots = []
    for slot in recorded.slots:
        now = []
        for frame in page.edits(slot, recorded.number)[: k + 1]:
            if isinstance(frame, str):
                now = frame.split('"')
            elif frame:
                for i, head, tail, between in zip(*[iter(frame)] * 4, strict=True):
                    now[i] = now[i][:head] + between + now[i][len(now[i]) - tail :]
        slots.append('"'.join(now))
    return "".join(part if isinstance(part, str) else slots[part] for part in recorded.parts)


def resolved(recorded, k):
    """The elements of a frame, with what their ids refer to, because ids are given in turn."""
    text = shown(recorded, k)
    root = ElementTree.fromstring(f"<svg><defs>{recorded.definitions}</defs>{text}</svg>")
    known = {}
    for element in root[0]:
        name = element.attrib.pop("id")
        known[name] = ElementTree.tostring(element, encoding="unicode")
    elements = []
    for element in list(root.iter())[1 + len(list(root[0].iter())) :]:
        values = {
            key: re.sub(rf"#({film.PREFIX}[\w-]+)", lambda found: known[found[1]], value)
            for key, value in element.attrib.items()
        }
        elements.append((element.tag, values))
    return elements


WITH_PICTURES = {"image", "image_of_many_colours", "rasterized"}  # which stand in sheets
vectors = [make for make in animations.ALL if make.__name__ not in WITH_PICTURES]


@pytest.mark.parametrize("make", vectors, ids=lambda make: make.__name__)
def test_what_is_drawn_again_gives_the_svg_of_a_figure_drawn_whole(make):
    animation = make()
    frames = frames_of(animation)
    recorded = film.record(animation, frames, 100)
    assert recorded.slots and not recorded.sheets
    for k in range(len(frames)):
        other = make()
        own = frames_of(other)
        for frame in own[:k]:
            borrowed.draw(other, frame)
        whole = film.record(other, own[k : k + 1], 100)
        assert not whole.slots
        assert resolved(recorded, k) == resolved(whole, 0), k


def test_pictures_are_packed_so_that_the_player_finds_every_pixel():
    rng = np.random.default_rng(0)
    few = [rng.choice([0, 7, 200], (5, 6, 4)).astype(np.uint8) for _ in range(4)]
    many = [rng.integers(0, 256, (300, 7, 4)).astype(np.uint8) for _ in range(3)]
    for stack, is_many in ((few, False), (many, True)):
        (height, width, count, columns, colors, planes, sharp), parts = sheets.packed(
            sheets.Sheet("", stack, True)
        )
        assert (height, width) == stack[0].shape[1::-1]
        palette, *bodies = (np.frombuffer(part, np.uint8) for part in parts)
        bodies = [body.reshape(len(stack), *stack[0].shape[:2]) for body in bodies]
        if is_many:
            assert (colors, planes) == (0, 4)
            unpacked = np.cumsum(np.stack(bodies, -1), axis=0, dtype=np.uint8)
        else:
            assert (colors, planes) == (len(np.unique(np.stack(few).view(np.uint32))), 2)
            z = bodies[0] + 256 * bodies[1].astype(int)
            numbers = np.cumsum(np.where(z & 1, -(z + 1) // 2, z // 2), axis=0)
            unpacked = palette.reshape(-1, 4)[numbers]
        np.testing.assert_array_equal(unpacked, np.stack(stack))
        assert (count, columns, sharp) == (len(stack), 4096 // stack[0].shape[1], 1)


def test_a_picture_that_comes_again_is_kept_once_and_sheets_do_not_outgrow_browsers():
    kept = sheets.Sheets("p")
    picture = lambda value: np.full((3000, 2000, 4), value, np.uint8)
    texts = [kept.place(picture(value), False) for value in (1, 2, 1, 3)]
    assert texts[0] == texts[2] and len(set(texts)) == 3
    assert [len(sheet.pictures) for sheet in kept.sheets] == [2, 1]
    assert 'x="-2000" y="0"' in texts[1]


def assert_is_of_pixels(path, expected):
    """A page's frames are pictures; these."""
    text = path.read_text(encoding="utf-8")
    packed = zlib.decompress(
        base64.b64decode(re.search(r'"([A-Za-z0-9+/=]+)"\)</script>', text)[1])
    )
    length = int.from_bytes(packed[:4], "little")
    meta = json.loads(packed[4 : 4 + length])
    ((_, width, height, count, _, colors, planes, _),) = meta["sheets"]
    pixels = np.frombuffer(packed[4 + length :], np.uint8)
    palette, pixels = pixels[: 4 * colors].reshape(-1, 4), pixels[4 * colors :]
    low, high = pixels.reshape(planes, count, height, width).astype(int)
    z = low + 256 * high
    shown = palette[np.cumsum(np.where(z & 1, -(z + 1) // 2, z // 2), axis=0)]
    assert meta["n"] == len(shown) == len(expected)
    assert np.abs(shown.astype(int) - np.stack(expected)).max() <= 3
    assert len(meta["slots"]) == 1 and all(meta["slots"][0])


@pytest.mark.parametrize(
    ("names", "owner"), [(borrowed.VECTOR, RendererSVG), (borrowed.REEL, Animation)]
)
def test_without_a_private_name_of_matplotlib_frames_are_pixels(
    monkeypatch, tmp_path, names, owner
):
    expected = pixels_of_matplotlib(animations.limits_that_move_once())
    monkeypatch.setitem(names, owner, names[owner] + " _that_is_gone")
    with pytest.warns(UserWarning, match=rf"pixels, .* has no {owner.__name__}._that_is_gone"):
        path = plot.save(animations.limits_that_move_once(), tmp_path / "page.html", dpi=72)
    assert_is_of_pixels(path, expected)
    assert plot.save(animations.cleared(), tmp_path / "some.gif", dpi=50).exists()


def test_without_the_writer_of_paths_frames_are_pixels(monkeypatch, tmp_path):
    expected = pixels_of_matplotlib(animations.limits_that_move_once())
    monkeypatch.setattr(borrowed, "convert_to_string", None)
    with pytest.warns(UserWarning, match=r"has no _path\.convert_to_string"):
        path = plot.save(animations.limits_that_move_once(), tmp_path / "page.html", dpi=72)
    assert_is_of_pixels(path, expected)


def test_without_the_figure_itself_frames_are_what_matplotlib_saves(monkeypatch, tmp_path):
    def figure_of(animation):
        raise borrowed.CannotFollow("there is none")

    expected = pixels_of_matplotlib(animations.blitted())
    monkeypatch.setattr(borrowed, "figure_of", figure_of)
    with pytest.warns(UserWarning, match="because there is none"):
        path = plot.save(animations.blitted(), tmp_path / "page.html", dpi=72)
    assert_is_of_pixels(path, expected)
    with pytest.warns(UserWarning, match="because there is none"):
        assert "<img" not in player._cell(animations.blitted())


def test_what_svg_cannot_draw_is_shown_as_pixels(tmp_path):
    figure, ax = plt.subplots(figsize=(3, 2.5))
    values = np.arange(16.0).reshape(4, 4)
    mesh = ax.pcolormesh(values, shading="gouraud")
    animation = FuncAnimation(figure, lambda k: mesh.set_array(values * k), frames=3)
    with pytest.warns(UserWarning, match="because SVG has no shading='gouraud'"):
        plot.save(animation, tmp_path / "page.html")


def test_an_error_of_a_users_function_is_the_users(tmp_path):
    def draw(k):
        return 1 / (2 - k)

    with pytest.raises(ZeroDivisionError):
        plot.save(FuncAnimation(plt.figure(), draw, frames=4), tmp_path / "page.html")


def test_a_figure_is_put_back_as_it_was(tmp_path):
    animation = animations.line_and_title()
    figure = animation._fig
    figure.canvas.draw()
    before = figure.dpi, figure.canvas, figure.get_layout_engine(), figure.axes[0].lines[0].axes
    callbacks = [artist.stale_callback for artist in figure.findobj()]
    for name in ("one.html", "one.gif", "one.png"):
        plot.save(animation, tmp_path / name, dpi=50)
    after = figure.dpi, figure.canvas, figure.get_layout_engine(), figure.axes[0].lines[0].axes
    assert before == after and not any("draw" in vars(artist) for artist in figure.findobj())
    assert callbacks == [artist.stale_callback for artist in figure.findobj()]


def test_the_same_animation_gives_the_same_page(tmp_path):
    pages = [
        plot.save(animations.line_and_title(), tmp_path / name) for name in ("a.html", "b.html")
    ]
    assert pages[0].read_bytes() == pages[1].read_bytes()


def test_one_frame_saved_is_not_all_that_is_left(tmp_path):
    animation = animations.line_and_title()
    for name in ("a.png", "b.html", "c.html"):
        text = plot.save(animation, tmp_path / name).read_bytes()
    assert b"animation of 5 frames" in text


def test_a_page_fetches_nothing_and_allows_nothing_else(tmp_path):
    text = plot.save(animations.mathematics(), tmp_path / "page.html").read_text(encoding="utf-8")
    assert not re.search(
        r"https?:(?!//www\.w3\.org/2000/svg)|@import|\bsrc=|innerHTML|eval\(", text
    )
    assert "default-src 'none'" in text and text.count("<script") == 1


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.mp4"])
def test_a_file_has_the_frames_that_were_drawn(tmp_path, name):
    pytest.importorskip("imageio_ffmpeg")
    path = plot.save(animations.line_and_title(), tmp_path / name, dpi=72)
    drawn = list(pixels_of_matplotlib(animations.line_and_title()))
    if name == "a.mp4":
        import imageio_ffmpeg

        ffmpeg, raw = imageio_ffmpeg.get_ffmpeg_exe(), "-f rawvideo -pix_fmt rgb24 -"
        command = [ffmpeg, "-i", path, *raw.split()]
        done = subprocess.run(command, capture_output=True, check=True)
        assert b"20 fps" in done.stderr
        read = list(np.frombuffer(done.stdout, np.uint8).reshape(-1, *drawn[0].shape[:2], 3))
    else:
        with Image.open(path) as image:
            read = []
            for k in range(image.n_frames):
                image.seek(k)
                read.append(np.asarray(image.convert("RGB")))
                assert image.info["duration"] == 50
    assert len(read) == len(drawn)
    most = {"a.gif": 40, "a.webp": 3, "a.mp4": 80}[name]
    for one, other in zip(read, drawn, strict=True):
        assert one.shape == other[..., :3].shape
        apart = np.abs(one.astype(int) - other[..., :3]).max(axis=-1)
        assert (apart > most).mean() < 4e-3 and np.median(apart) <= 2


def test_one_frame_is_saved_as_png(tmp_path):
    drawn = list(pixels_of_matplotlib(animations.scatter_and_bars()))
    for frame in (-1, 2):
        path = plot.save(animations.scatter_and_bars(), tmp_path / "a.png", dpi=72, frame=frame)
        with Image.open(path) as image:
            assert np.abs(np.asarray(image).astype(int) - drawn[frame]).max() <= 3


def test_sizes_that_are_odd_can_be_films(tmp_path):
    pytest.importorskip("imageio_ffmpeg")
    figure = plt.figure(figsize=(1.01, 0.99), facecolor=(0, 0, 0, 0.5))
    path = plot.save(FuncAnimation(figure, lambda k: None, frames=2), tmp_path / "a.mp4")
    assert path.read_bytes()[4:8] == b"ftyp"


def test_frames_without_an_end_are_refused(tmp_path):
    for frames, found in ((itertools.count, "more than 10,000"), ([], "no")):
        made = FuncAnimation(plt.figure(), lambda k: None, frames=frames, cache_frame_data=False)
        made._draw_was_started = True
        with pytest.raises(ValueError, match=f"has {found} frames, .* give it frames="):
            plot.save(made, tmp_path / "a.gif")


def test_an_iterator_of_frames_is_drawn_whole(tmp_path):
    seen = []
    frames = iter(range(3))
    options = {"repeat": False, "cache_frame_data": False}
    animation = FuncAnimation(plt.figure(), seen.append, frames=frames, **options)
    plot.save(animation, tmp_path / "a.html")
    assert seen == [0, 1, 2]


def test_a_cell_shows_the_player_and_not_the_figure_again():
    animation = animations.line_and_title()
    cell = player._cell(animation)
    assert "<script>" in cell and "data:image/png;base64," in cell and not plt.get_fignums()
    assert "Content-Security-Policy" not in cell
    assert len(player._cell(animation)) == pytest.approx(len(cell), rel=0.01)  # again


def test_in_a_notebook_an_animation_is_displayed(monkeypatch):
    displayed = []
    display = types.SimpleNamespace(HTML=lambda text: text, display=displayed.append)
    shell = types.SimpleNamespace(kernel=None)
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: shell))
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    plot.show(animations.blitted())
    assert len(displayed) == 1 and "jaxfit-player" in displayed[0]


def test_elsewhere_it_is_opened_in_a_browser(monkeypatch):
    opened = []
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: None))
    monkeypatch.setattr("webbrowser.open", opened.append)
    plot.show(animations.blitted())
    assert re.fullmatch(r"file:///.*animation\.html", opened[0])
