"""Show what a bundle sees on a camera, a video file or a stream: the newest frame always, old ones never.

python examples/camera_app.py my.edgemae 0
python examples/camera_app.py my.edgemae clip.mp4
python examples/camera_app.py my.edgemae rtsp://user:password@camera.lan/main   # opened again whenever it was away
"""

import sys

import edgemae


def main() -> None:
    bundle, source = sys.argv[1], sys.argv[2]
    with (
        edgemae.load(bundle) as model,
        edgemae.Camera(int(source) if source.isdigit() else source, "latest", realtime=True) as camera,
    ):
        print(f"{model.info['engine']} {model.info['precision']}, labels: {', '.join(model.labels)}")
        for frame in camera:
            result = model(frame.array_bgr)
            said = f"{result.label} {result.score:.2f}" if result.label else f"embedding of {len(result.embedding)}"
            print(f"frame {frame.seq}: {said}, {result.speed['infer_ms']:.1f} ms, {frame.age_ms:.0f} ms old")
    print(camera.state, camera.last_error, camera.counters)


if __name__ == "__main__":
    main()
