"""``uniformer visualize``: where a model looks in a video."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import options


def visualize(
    video: Annotated[Path, typer.Argument(help="A video file.")],
    checkpoint: options.Checkpoint,
    model: Annotated[str | None, typer.Option(help="Its name, where no shape tells it.")] = None,
    keyword: options.Keywords = None,
    labels: options.Labels = None,
    target: Annotated[
        int | None, typer.Option("--class", help="Explain this one; the best by default.", min=0)
    ] = None,
    stage: Annotated[int, typer.Option(help="Whose map: 3 is finer than 4.", min=1, max=4)] = 4,
    frames: options.Frames = None,
    size: options.Size = None,
    sampling: options.SamplingName = None,
    stride: options.Stride = None,
    bgr: options.Bgr = False,
    fps: Annotated[int, typer.Option(help="Frames a second of the MP4.", min=1)] = 6,
    device: options.Device = "auto",
    out: Annotated[Path, typer.Option(help="Folder for the pictures.", file_okay=False)] = Path(
        "visualization"
    ),
) -> None:
    """Draw Grad-CAM over the clip in the middle of a video, as a PNG strip and as an MP4.

    For lightweight models also which tokens every hourglass block kept.
    """
    from rich.console import Console

    from ..data import Broken, Video, VideoError
    from ..engine.distributed import join_world
    from ..engine.evaluation import protocol_for, score_views
    from ..engine.files import check_folder
    from ..explanations import grad_cam, kept_tokens
    from ..explanations.drawing import draw_heat, draw_tokens, to_frames, write_heat
    from ..layers import HourglassBlock

    net, names = options.load_model(checkpoint, model, keyword, labels)
    if target is not None and target >= net.num_classes:
        raise options.CommandError(
            f"class: expected 0 to {net.num_classes - 1}, the model's classes, got {target}"
        )
    with options.explained():
        views = protocol_for(
            net,
            clips=1,
            crops=1,
            frames=frames,
            size=size,
            sampling=sampling,
            stride=stride,
            bgr=bgr,
        )
    sample = views.dataset([Video(video, 0)])[0]
    if isinstance(sample, Broken):
        raise VideoError(sample.reason)
    with join_world(device) as world, options.explained():
        check_folder(out)
        net, clip = net.to(world.device), sample.clips.to(world.device)
        if target is None:
            target = int(score_views(net, clip, batch_size=1).argmax())
        heat = grad_cam(net, clip, [target], stage=stage)[0]
        light = any(isinstance(module, HourglassBlock) for module in net.modules())
        tokens = kept_tokens(net, clip) if light else None

    shown = to_frames(clip[0].flip(0) if bgr else clip[0])
    title = names[target] if names else f"class {target}"
    out.mkdir(parents=True, exist_ok=True)
    stem = options.printable(video.stem)
    written = [out / f"{stem}.gradcam.png", out / f"{stem}.gradcam.mp4"]
    draw_heat(written[0], shown, heat, title)
    write_heat(written[1], shown, heat, fps=fps)
    if tokens:
        written.append(out / f"{stem}.tokens.png")
        draw_tokens(written[2], shown, tokens, f"{title}: tokens that take part")
    listed = ", ".join(map(str, written))
    Console().print(f"Written: {listed}", markup=False, soft_wrap=True)
