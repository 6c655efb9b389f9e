"""Child process of `edgemae profile --baseline pytorch:FILE`: PyTorch eager as a baseline, a call like a bundle's."""

from __future__ import annotations

from itertools import cycle
from pathlib import Path

import torch

from edgemae.device.outputs import top_classes
from edgemae.device.preprocess import preprocess
from edgemae.model.student import load_student
from edgemae.profiling.compare.ab_worker import Order, WorkerSetup, goal_of, serve
from edgemae.profiling.golden_inputs import golden_frames
from edgemae.spec.bundle import open_bundle


def hold(order: Order) -> WorkerSetup:
    """Hold a student file in fp32 on the target's threads: pixels in to result out, with its own pixel contract."""
    bundle = open_bundle(order["pixels_of"])
    student = load_student(Path(order["path"]))
    torch.set_num_threads(goal_of(order, bundle).threads)
    frames, vit = cycle(golden_frames(bundle)), student.vit.eval()

    def run() -> None:
        pixels = torch.from_numpy(preprocess(next(frames), student.pixel))
        with torch.inference_mode():
            logits, embedding = vit(pixels)
        embedding.numpy()
        if logits is not None:
            top_classes(logits[0].numpy(), student.labels)

    about = {"name": Path(order["path"]).stem, "engine": "torch eager", "precision": "fp32"}
    return run, about | {"version": torch.__version__}


if __name__ == "__main__":
    serve({"pytorch": hold})
