"""Screenshots of every page for people to look at: python -m tools.shots [page ...]"""

import sys

from tools.site import ROOT, browser, pages, served

LOOKS = {
    "desktop": {"viewport": {"width": 1280, "height": 900}},
    "phone": {
        "viewport": {"width": 390, "height": 844},
        "device_scale_factor": 2,
        "has_touch": True,
    },
    "dark": {"viewport": {"width": 1280, "height": 900}, "color_scheme": "dark"},
}


def main(wanted):
    folder = ROOT / "shots"
    if unknown := set(wanted) - set(pages()):
        print(f"no page is called {', '.join(sorted(unknown))}; pages are called as in _build/html",
              file=sys.stderr)  # fmt: skip
        sys.exit(2)
    folder.mkdir(exist_ok=True)
    with served() as address, browser() as window:
        for look, options in LOOKS.items():
            context = window.new_context(**options)
            for page in wanted or pages():
                tab = context.new_page()
                tab.goto(address + page, wait_until="networkidle")
                tab.wait_for_timeout(500)
                name = f"{page.removesuffix('.html').replace('/', '-')}-{look}.png"
                tab.screenshot(path=folder / name, full_page=True)
                tab.close()
            context.close()
    print(f"screenshots are in {folder.relative_to(ROOT)}/")


if __name__ == "__main__":
    main(sys.argv[1:])
