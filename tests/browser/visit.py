"""A tab of the built book, and everything its reader's browser would have complained about."""

from urllib.parse import urlparse


class Visit:
    """A tab, and everything a reader's browser would have complained about."""

    def __init__(self, window, site, page, **look):
        self.home = urlparse(site).netloc
        self.complaints, self.strangers = [], []
        self.context = window.new_context(**look)
        self.tab = self.context.new_page()
        self.tab.on("console", self.heard)
        self.tab.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.tab.on("request", self.asked)
        self.tab.on("requestfailed", self.failed)
        self.tab.on("response", self.answered)
        self.tab.goto(site + page, wait_until="networkidle")

    def heard(self, message):
        if message.type in ("error", "warning"):
            self.complaints.append(message.text)

    def asked(self, request):
        address = urlparse(request.url)
        if address.scheme not in ("data", "blob") and address.netloc != self.home:
            self.strangers.append(request.url)

    def failed(self, request):
        # What the browser drops because the reader has gone to another page is no failure.
        if "ERR_ABORTED" not in (request.failure or ""):
            self.complaints.append(f"failed: {request.url}")

    def answered(self, response):
        if response.status >= 400:
            self.complaints.append(f"{response.status}: {response.url}")

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.context.close()


def width(tab):
    return tab.evaluate("[document.documentElement.scrollWidth, innerWidth]")
