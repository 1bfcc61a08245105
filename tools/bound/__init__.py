"""The built book bound as files that are read without the site, EPUB and PDF; here, what they say of themselves."""

import yaml

from collage import __version__
from tools.edition import edition
from tools.site import HTML, ROOT

CONFIG = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
TITLE, AUTHOR, BASE = CONFIG["title"], CONFIG["author"], CONFIG["html"]["baseurl"]
LANGUAGE = CONFIG["sphinx"]["config"]["language"]
SUBTITLE = "Eight deep-learning papers, each understood in one sitting"
DOWNLOADS = HTML / "downloads"
VERSION, EDITION = __version__, edition()
PREFACE = f"""<section><h1>About this edition</h1>
<p>This is edition {EDITION} of <a href="{BASE}">{TITLE}</a>, all of it, made from the pages of the
book's site. Each chapter says what a paper claims, derives why it should be true, and checks it.</p>
<ul>
<li>A line with ✓ is a check or a claim that held when the chapter was run; ◐ held in part, and ✗ did not
hold. The text says which numbers come from a recorded run or from the paper.</li>
<li>The code that draws figures and computes checks is left out; it is in the chapter's notebook. The code
of the method is all here.</li>
<li>Solutions of the exercises stand at the end of each chapter.</li>
<li>A live figure shows one of its pictures. To move it, or to run a chapter, take the link beside it.</li>
</ul>
<p>Code is under the MIT licence, text and figures under CC BY 4.0.</p></section>"""
