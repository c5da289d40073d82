"""Made-up video files."""

import io

import numpy as np


def clip(
    num_frames: int, *, rate: int = 10, size: tuple[int, int] = (64, 48), kind: str = "mp4", rotation: int = 0
) -> bytes:
    """A clip whose frame i is grey of 8 i, modulo 256, and white on the left. Needs PyAV."""
    import av

    out = io.BytesIO()
    with av.open(out, "w", format=kind) as container:
        stream = container.add_stream("rawvideo" if kind == "avi" else "mpeg4", rate=rate)
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        if rotation:
            stream.set_display_rotation(rotation)
        for i in range(num_frames):
            pixels = np.full((size[1], size[0], 3), i * 8 % 256, np.uint8)
            pixels[:, : size[0] // 4] = 255
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return out.getvalue()
