"""Find what is unlike all normal images, and draw where. Needs a bundle compiled with --set export.tokens=true.

python examples/anomaly_app.py my.edgemae normal/ 0          # normal/*.jpg: images without a defect, 200 or more
python examples/anomaly_app.py my.edgemae normal/ clip.mp4
"""

import sys
from pathlib import Path

import cv2

import edgemae


def main() -> None:
    bundle, folder, source = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
    with edgemae.load(bundle) as model:
        normal = (cv2.imread(str(path)) for path in sorted(folder.iterdir()))
        detector = edgemae.AnomalyDetector.fit(model, normal, false_alarm_rate=0.01)
        detector.save("this.normal")  # next time: edgemae.AnomalyDetector.load("this.normal", model)
        print(detector.calibration)  # is the rate a claim, and how high could it be?
        with detector.stream(int(source) if source.isdigit() else source, "latest", realtime=True) as stream:
            for seen in stream:
                found = seen.result
                print(f"frame {seen.frame.seq}: score {found.score:.2f}{' ANOMALY' if found.is_anomaly else ''}")
                if found.is_anomaly:
                    cv2.imwrite(f"anomaly-{seen.frame.seq}.png", edgemae.overlay(seen.frame.array_bgr, found.map))


if __name__ == "__main__":
    main()
