"""Recognise what was never trained: show a bundle a few images of each thing, then ask what a camera sees.

python examples/gallery_app.py my.edgemae things/ 0        # things/<name>/*.jpg, one folder a thing
python examples/gallery_app.py my.edgemae things/ clip.mp4
"""

import sys
from pathlib import Path

import cv2

import edgemae

KNOWN = 0.8  # cosine below which nothing in the gallery looks like it; try what fits your things


def main() -> None:
    bundle, folder, source = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
    with edgemae.load(bundle) as model:
        gallery = edgemae.Gallery(model)
        for path in sorted(folder.glob("*/*")):
            gallery.add(cv2.imread(str(path)), path.parent.name, {"file": path.name})
        gallery.save("things.gallery")  # next time: edgemae.Gallery.load("things.gallery", model)
        with model.stream(int(source) if source.isdigit() else source, "latest", realtime=True) as stream:
            for seen in stream:
                (nearest,) = gallery.search(seen.result, top=1)
                text = nearest.label if nearest.score >= KNOWN else "nothing known"
                print(f"frame {seen.frame.seq}: {text} ({nearest.score:.2f}, like {nearest.metadata['file']})")


if __name__ == "__main__":
    main()
