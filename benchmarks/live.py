"""How fast the live figures draw in headless Chromium, and what they weigh: python -m benchmarks.live

One frame is a sixtieth of a second of the demo and its drawing, on a canvas as wide as a desktop's
column. Prints a line for each chapter; 16.7 ms is what 60 frames a second allow.
"""

from pathlib import Path

from tools.site import browser, served

LIVE = Path(__file__).resolve().parent.parent / "assets" / "live"
SHARED = ("live", "pen", "random", "adam")
FRAMES = """() => {
  const live = document.querySelector('figure.demo').live, times = [];
  for (let n = 0; n < 400; n++) {
    if (!live.moving) live.restart();
    const begin = performance.now();
    live.frame(1 / 60);
    times.push(performance.now() - begin);
  }
  times.sort((a, b) => a - b);
  return [times[200], times[396]];
}"""


def main() -> None:
    shared = sum((LIVE / f"{name}.js").stat().st_size for name in SHARED)
    print(f"{'chapter':22}{'median':>9}{'99 in 100':>11}{'script':>10}{'data':>9}")
    with served() as site, browser() as window:
        for path in sorted(LIVE.glob("*.js")):
            if path.stem in SHARED:
                continue
            tab = window.new_page(viewport={"width": 1280, "height": 900})
            tab.goto(f"{site}chapters/{path.stem}.html")
            tab.wait_for_function("document.querySelector('figure.demo').live?.model")
            median, slow = tab.evaluate(FRAMES)
            data = path.with_suffix(".json")
            size = data.stat().st_size / 1000 if data.exists() else 0
            script = (shared + path.stat().st_size) / 1000
            print(f"{path.stem:22}{median:6.1f} ms{slow:8.1f} ms{script:7.0f} kB{size:6.0f} kB")
            tab.close()


if __name__ == "__main__":
    main()
