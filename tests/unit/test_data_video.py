"""Video files to frames: which ones, when, and what is refused."""

import io
from pathlib import Path

import numpy as np
import pytest
from video_files import clip

from herd.config import VisionConfig
from herd.data.media.image import ImageProcessor
from herd.data.media.video import read_video, video_part
from herd.data.tokens.chat import render_messages
from herd.errors import HerdError

av = pytest.importorskip("av", reason="PyAV is not installed: pip install 'herd-lm[video]'")


def times(data: bytes, **options: float) -> list[float]:
    return [seconds for seconds, _ in read_video(data, **options)]


def test_frames_come_at_the_rate_with_their_times() -> None:
    data = clip(30)
    assert times(data) == [0, 1, 2]
    assert times(data, frames_per_s=2) == [0, 0.5, 1, 1.5, 2, 2.5]
    greys = [picture.getpixel((60, 20))[0] for _, picture in read_video(data)]
    assert greys == pytest.approx([0, 80, 160], abs=6)


@pytest.mark.parametrize(
    ("frames_per_s", "max_frames", "expected"),
    [
        (1, 1, [0]),
        (1, 2, [0, 2]),
        (1, 3, [0, 1, 2]),
        (4, 4, [0, 1, 2]),
        (10, 5, [0, 0.8, 1.6, 2.4]),
        (10, 30, [i / 10 for i in range(30)]),
    ],
)
def test_a_cap_leaves_frames_that_are_spread_evenly(frames_per_s, max_frames, expected) -> None:
    assert times(clip(30), frames_per_s=frames_per_s, max_frames=max_frames) == expected


def test_fewer_frames_than_asked_for_are_all_used_once() -> None:
    assert times(clip(4, rate=1), frames_per_s=30) == [0, 1, 2, 3]


def test_a_rotated_video_is_upright_and_a_large_one_is_made_small() -> None:
    assert read_video(clip(2))[0][1].size == (64, 48)
    turned = read_video(clip(2, rotation=90))[0][1]
    assert turned.size == (48, 64)
    assert turned.getpixel((24, 60))[0] > 200  # counterclockwise: what was left is below
    assert read_video(clip(1, size=(2048, 512)))[0][1].size == (1024, 256)


def test_what_is_no_video_is_reported_in_one_line(tmp_path: Path) -> None:
    sound = io.BytesIO()
    with av.open(sound, "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=8000)
        container.mux(stream.encode(None))
    whole = clip(30, kind="avi")
    hidden = tmp_path / "hidden.mp4"
    hidden.write_bytes(clip(3))
    playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile://{hidden}\n"
    for data, message in [
        (b"", "not a readable video"),
        (b"no video at all", "not a readable video"),
        (clip(30)[:1500], "not a readable video"),
        (sound.getvalue(), "only sound|not a readable video|no frames"),
        (clip(0), "no frames|not a readable video"),
        (whole[:300], "no frames|not a readable video"),
        (playlist.encode(), "not a readable video"),
        (f"ffconcat version 1.0\nfile {hidden}\n".encode(), "not a readable video"),
    ]:
        with pytest.raises(HerdError, match=message) as caught:
            read_video(data)
        assert "\n" not in str(caught.value)
    with pytest.raises(HerdError, match=r"gone\.mp4 does not exist"):
        read_video(tmp_path / "gone.mp4")
    with pytest.raises(HerdError, match="longer than"):
        read_video(slow_clip())


def test_a_video_that_nobody_waits_for_is_decoded_to_the_next_frame_only() -> None:
    asked = []

    def cancelled() -> bool:
        asked.append(True)
        return len(asked) == 3

    with pytest.raises(HerdError, match="cancelled"):
        read_video(clip(30), cancelled=cancelled)
    assert len(asked) == 3


def slow_clip() -> bytes:
    """Two frames, twenty minutes apart."""
    out = io.BytesIO()
    with av.open(out, "w", format="matroska") as container:
        stream = container.add_stream("mpeg4", rate=1)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for time in (0, 1200):
            frame = av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), format="rgb24")
            frame.pts = time
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return out.getvalue()


def test_a_conversation_shows_each_frame_in_one_tile_behind_its_time() -> None:
    from model_folder import random_tokenizer

    tokenizer = random_tokenizer()
    processor = ImageProcessor(
        VisionConfig(image_size=28, patch_size=14, dim=32, num_layers=1, num_heads=2, adapter_dim=32, max_tiles=4)
    )
    part = video_part(read_video(clip(25)))
    rendered = render_messages(tokenizer, processor, [{"role": "user", "content": [part]}])
    assert [len(tiles.pixels) for tiles in rendered.tiles] == [1, 1, 1]
    text = tokenizer.decode(rendered.ids, skip_special=False)
    for time in ("0.0s", "1.0s", "2.0s"):
        assert f"{time}<|image_start|><|image|><|patch|>" in text
