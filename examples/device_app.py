"""The smallest device app: one bundle, one image, one answer. Needs numpy, msgspec, cv2 and one engine; no torch.

python examples/device_app.py my.edgemae image.jpg
"""

import sys

import cv2

import edgemae

model = edgemae.load(sys.argv[1])  # hashes, then the golden frames: a model that moved does not load
result = model(cv2.imread(sys.argv[2]))
print(result.label, result.score, result.speed)
