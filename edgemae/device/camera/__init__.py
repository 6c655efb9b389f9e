"""Camera sources, opened, read and watched for weeks: silence is noticed, its cause asked for, the source opened again.

`camera.Camera` is the door, `edgemae.Camera` from outside.
"""
