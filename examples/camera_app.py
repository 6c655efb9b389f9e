"""Show what a bundle sees on cameras, streams or video files: the newest frame of each, never an old one.

python examples/camera_app.py my.edgemae 0
python examples/camera_app.py my.edgemae rtsp://door/1 rtsp://yard/1   # opened again whenever they were away
python examples/camera_app.py my.edgemae --async clip.mp4
"""

import asyncio
import sys

import edgemae


def show(seen):
    result = seen.result
    text = f"{result.label} {result.score:.2f}" if result.label else f"embedding of {len(result.embedding)}"
    print(f"{seen.source} frame {seen.frame.seq}: {text}, {seen.age_ms:.0f} ms old")


def by_callback(model, sources):
    """Call `show` with every result. One that raises is counted, five in a row end the stream with an error."""
    with model.stream(sources, "latest", realtime=True, on_result=show, max_age_ms=500).start() as results:
        while not results.wait(10):  # the program's own work would be here
            print(results.state, results.counters)
        print(results.state, results.counters)


async def by_event_loop(model, sources):
    """Take results one by one, as a web server would. Frames and inference never block the loop."""
    async with model.stream(sources, "latest", realtime=True) as results:
        async for seen in results:
            show(seen)


def main():
    bundle, *sources = [int(word) if word.isdigit() else word for word in sys.argv[1:]]
    with edgemae.load(bundle) as model:
        if sources[0] == "--async":
            asyncio.run(by_event_loop(model, sources[1:]))
        else:
            by_callback(model, sources)


if __name__ == "__main__":
    main()
