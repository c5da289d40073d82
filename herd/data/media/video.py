"""A video file as frames with their times, for the image path: what Llama 4 sees of a video is pictures.

Time is cut into steps, and the first frame of each is taken. When `max_frames` are not enough the steps are doubled, so
that the frames stay evenly spread and the length need not be known beforehand; a long video gives at least half of
`max_frames`. Decoded by PyAV (the extra `video`); sound is left out.
"""

import io
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from herd.core.files import read_bytes
from herd.data.media.image import MAX_PIXELS
from herd.errors import HerdError

if TYPE_CHECKING:
    from fractions import Fraction

    import av

MAX_SECONDS = 600
"""A longer video is refused: all of it would have to be decoded."""
MAX_SIDE = 1024
"""A larger frame is made smaller at once; it becomes one tile in the end."""

# Playlists and the like would open other files; these hold what they show.
_SAFE = {
    "format_whitelist": "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,ogg,flv,asf,gif,apng",
    "protocol_whitelist": "none",
}


def read_video(
    source: Path | str | bytes,
    *,
    frames_per_s: float = 1.0,
    max_frames: int = 16,
    cancelled: Callable[[], bool] = lambda: False,
) -> list[tuple[float, Image.Image]]:
    """(seconds from the first frame, RGB picture) of frames of a video, turned upright, with square pixels.

    Raises HerdError when the file is missing, unreadable, has no frames, is longer than MAX_SECONDS or larger than
    MAX_PIXELS, when PyAV is not installed, and at the next frame once `cancelled()`.
    """
    if frames_per_s <= 0 or max_frames < 1:
        raise HerdError(f"frames_per_s={frames_per_s} and max_frames={max_frames} must be positive")
    try:
        import av
    except ImportError:
        raise HerdError("video needs PyAV: pip install 'herd-lm[video]'") from None
    name = "the video" if isinstance(source, bytes) else str(source)
    data = source if isinstance(source, bytes) else read_bytes(Path(source))
    chosen: dict[int, tuple[float, Image.Image]] = {}
    step, first = 1 / frames_per_s, None

    def slot(seconds: float) -> int:
        return int((seconds + 1e-3) / step)  # a hair early is in time: files count time in whole ticks

    try:
        with av.open(io.BytesIO(data), mode="r", options=_SAFE) as container:
            if not container.streams.video:
                raise HerdError(f"{name} has no pictures in it, only sound")
            stream = container.streams.video[0]
            for index, frame in enumerate(container.decode(stream)):
                if cancelled():
                    raise HerdError(f"the decoding of {name} was cancelled")
                if frame.width * frame.height > MAX_PIXELS:
                    raise HerdError(f"{name} has {frame.width} x {frame.height} pixels, over {MAX_PIXELS:,}")
                time = frame.time if frame.time is not None else index / float(stream.average_rate or 25)
                first = time if first is None else first
                if (seconds := time - first) > MAX_SECONDS:
                    raise HerdError(f"{name} is longer than {MAX_SECONDS} seconds: cut it")
                while len(chosen) == max_frames and slot(seconds) not in chosen:
                    step *= 2
                    chosen = {slot(time): (time, picture) for time, picture in reversed(chosen.values())}
                    chosen = dict(reversed(chosen.items()))
                if slot(seconds) not in chosen:
                    chosen[slot(seconds)] = (round(seconds, 3), _upright(frame, stream.sample_aspect_ratio))
    except av.error.FFmpegError as error:
        if not chosen:
            raise HerdError(f"{name} is not a readable video ({error.strerror}): try MP4 or WebM") from None
        raise HerdError(f"{name} is damaged after {seconds:.1f} s ({error.strerror}): save it again") from None
    if not chosen:
        raise HerdError(f"{name} has no frames")
    return list(chosen.values())


def video_part(frames: list[tuple[float, Image.Image]]) -> dict[str, Any]:
    """The part of a message's content that shows `frames`, each in one tile."""
    return {"type": "video", "frames": frames, "max_tiles": 1}


def _upright(frame: "av.VideoFrame", ratio: "Fraction | None") -> Image.Image:
    picture = frame.to_image()
    width = picture.width * float(ratio or 1)
    scale = min(1.0, MAX_SIDE / max(width, picture.height))
    size = (max(1, round(width * scale)), max(1, round(picture.height * scale)))
    if size != picture.size:
        picture = picture.resize(size, Image.Resampling.BILINEAR)
    return picture.rotate(frame.rotation, expand=True) if frame.rotation else picture
