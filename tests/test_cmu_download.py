"Downloading from a server on this machine that drops connections, lies about lengths, changes files and forgets them; and a download that is killed."
import hashlib
import http.server
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from poseprojects.data import cmu, cmu_download
from poseprojects.data.cmu_download import AGENT, MANIFEST, download, main, named_files, protocol_files, read_sums, same_content
from poseprojects.storage import InputError

pytestmark = pytest.mark.xdist_group("download")


class Site:
    "A server with faults, each given by the name of a file: how often, and what."
    def __init__(self, root):
        self.root, self.asked, self.faults, self.ranges = root, [], {}, True
        self.open, self.most, self.lock = 0, 0, threading.Lock()
        site = self
        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            def log_message(self, *arguments): pass
            def do_GET(self):
                with site.lock: site.open += 1; site.most = max(site.most, site.open)
                try: site.answer(self)
                except (BrokenPipeError, ConnectionResetError): pass
                finally:
                    with site.lock: site.open -= 1
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def answer(self, request):
        path = request.path.split("?")[0].lstrip("/")
        self.asked.append((path, dict(request.headers)))
        request.close_connection = True
        fault = self.faults[path].pop(0) if self.faults.get(path) else None
        file = self.root / path
        def head(status, **headers):
            request.send_response(status)
            for name, value in headers.items(): request.send_header(name.replace("_", "-"), str(value))
            request.end_headers()
        if isinstance(fault, tuple): return head(fault[0], Content_Length=0, **fault[1])
        if path == "search.php": content = b"".join(f'<a href="subjects/{p.parent.name}/{p.name}">x</a>'.encode() for p in self.root.glob("subjects/*/*.amc"))
        elif file.is_file(): content = file.read_bytes()
        else: return head(404, Content_Length=0)
        tag, whole, start = f'"{hashlib.md5(content).hexdigest()}"', len(content), 0
        wanted = re.fullmatch(r"bytes=(\d+)-", request.headers.get("Range", ""))
        if wanted and self.ranges and request.headers.get("If-Range") == tag:
            start = int(wanted[1])
            if start >= whole: return head(416, Content_Length=0)
        shift = 3 if fault == "wrong range" and start else 0
        announced = whole - start + (50 if fault == "too long" else 0)
        if start: head(206, Content_Length=announced, Content_Range=f"bytes {start + shift}-{whole - 1}/{whole}", ETag=tag)
        else: head(200, Content_Length=announced, ETag=tag)
        body = content[start:]
        if fault == "drop": body = body[: max(1, len(body) // 2)]
        if fault == "slow":
            for k in range(0, len(body), 400): request.wfile.write(body[k:k + 400]); request.wfile.flush(); time.sleep(0.02)
        else: request.wfile.write(body)

    def close(self): self.server.shutdown(); self.server.server_close()


@pytest.fixture
def site(tmp_path):
    made = Site(tmp_path / "site")
    cmu.example(made.root / "subjects", frames=8)
    yield made
    made.close()


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch):
    "The made-up people are not those of SHA256SUMS."
    real = cmu_download.read_sums
    monkeypatch.setattr(cmu_download, "read_sums", lambda path: {} if Path(path).name == "SHA256SUMS" else real(path))


NAMES, FIRST = ["03/03.asf", "03/03_01.amc"], "subjects/03/03_01.amc"
fetch = lambda folder, site, **given: download(folder, site=site.url, **{"files": NAMES, "pause": 0, "sleep": lambda s: None, **given})
whole = lambda folder, site: {n: (folder / n).read_bytes() == (site.root / "subjects" / n).read_bytes() for n in NAMES}
parts = lambda folder: [p.name for p in folder.rglob(".*") if p.name != ".download.lock"]


def test_everything_that_the_index_lists(site, tmp_path, monkeypatch):
    done = fetch(tmp_path / "cmu", site, files=None)
    assert len(done.fetched) == 20 and not done.missing and not done.differs and parts(tmp_path / "cmu") == []
    sums = read_sums(tmp_path / "cmu" / MANIFEST)
    assert set(sums) == set(done.fetched) and sums["03/03.asf"] == hashlib.sha256((tmp_path / "cmu/03/03.asf").read_bytes()).hexdigest()
    assert len(cmu.read_trials(tmp_path / "cmu")) == 88
    before, asked = {p: p.stat().st_mtime_ns for p in (tmp_path / "cmu").rglob("*.a*")}, len(site.asked)
    again = fetch(tmp_path / "cmu", site, files=None)
    assert len(again.kept) == 20 and not again.fetched and len(site.asked) == asked + 1 # the index
    assert before == {p: p.stat().st_mtime_ns for p in (tmp_path / "cmu").rglob("*.a*")}


def test_it_is_polite(site, tmp_path):
    waits = []
    fetch(tmp_path / "cmu", site, files=None, subjects=["03", "09"], pause=1.0, sleep=waits.append)
    assert waits == [1.0] * 3 and site.most == 1
    assert {headers["User-Agent"] for _, headers in site.asked} == {AGENT} and "poseprojects" in AGENT
    assert {path.split("/")[1] for path, _ in site.asked[1:]} == {"03", "09"}


@pytest.mark.parametrize("faults", [["drop"], ["drop"] * 4, ["too long"], ["drop", "too long", "drop"], [(503, {})], [(500, {}), "drop"], ["drop", "wrong range"]], ids=str)
def test_it_goes_on_after_faults(site, tmp_path, faults):
    site.faults[FIRST] = list(faults)
    waits = []
    done = fetch(tmp_path / "cmu", site, pause=1.0, sleep=waits.append)
    assert all(whole(tmp_path / "cmu", site).values()) and len(done.fetched) == 2 and parts(tmp_path / "cmu") == []
    assert 1 <= len(waits) <= len(faults) + 2 and waits == [1.0, *(2.0 ** k for k in range(len(waits) - 1))] # between files, then ever longer


def test_a_dropped_connection_is_resumed_and_not_begun_again(site, tmp_path):
    site.faults[FIRST] = ["drop", "drop"]
    fetch(tmp_path / "cmu", site)
    asked = [headers.get("Range") for path, headers in site.asked if path == FIRST]
    size = (site.root / FIRST).stat().st_size
    assert asked[0] is None and asked[1] == f"bytes={size // 2}-" and int(re.findall(r"\d+", asked[2])[0]) > size // 2


def test_a_server_without_ranges(site, tmp_path):
    site.ranges, site.faults[FIRST] = False, ["drop", "drop"]
    assert fetch(tmp_path / "cmu", site).fetched == NAMES and all(whole(tmp_path / "cmu", site).values())


def test_a_file_that_changes_while_it_is_fetched(site, tmp_path):
    "If-Range: the half of an old file is never completed with the half of a new one."
    site.faults[FIRST] = ["drop"]
    def change(seconds):
        if "Range" not in str(site.asked[-1]) and site.asked[-1][0] == FIRST: (site.root / FIRST).write_bytes((site.root / FIRST).read_bytes().replace(b"1", b"2"))
    fetch(tmp_path / "cmu", site, sleep=change)
    assert all(whole(tmp_path / "cmu", site).values())


def test_it_gives_up_and_keeps_what_came(site, tmp_path):
    site.faults[FIRST] = ["drop"] * 3
    with pytest.raises(InputError, match="not fetched after 3 attempts.*run it again") as refusal: fetch(tmp_path / "cmu", site, attempts=3)
    assert "\n" not in str(refusal.value) and not (tmp_path / "cmu" / NAMES[1]).exists() and ".03_01.amc.part" in parts(tmp_path / "cmu")
    assert fetch(tmp_path / "cmu", site).kept == NAMES[:1] and all(whole(tmp_path / "cmu", site).values())


def test_the_server_may_ask_for_patience(site, tmp_path):
    site.faults[FIRST] = [(429, {"Retry-After": 7}), (503, {"Retry-After": 99999})]
    waits = []
    fetch(tmp_path / "cmu", site, pause=0.5, sleep=waits.append)
    assert waits == [0.5, 7.0, 300.0]


def test_what_the_server_does_not_have_is_noted(site, tmp_path):
    done = fetch(tmp_path / "cmu", site, files=[*NAMES, "03/03_77.amc"])
    assert done.missing == ["03/03_77.amc"] and len(done.fetched) == 2 and "not on the server (03/03_77.amc)" in str(done)


@pytest.mark.parametrize("content", [b"<html>sorry</html>", b"", b"\0" * 300], ids=["a page", "nothing", "zeros"])
def test_a_page_that_says_sorry_is_no_motion(site, tmp_path, content):
    (site.root / FIRST).write_bytes(content)
    with pytest.raises(InputError, match="no Acclaim file"): fetch(tmp_path / "cmu", site)
    assert not (tmp_path / "cmu" / NAMES[1]).exists() and parts(tmp_path / "cmu") == []


def test_a_refusal_is_one_sentence(site, tmp_path):
    site.faults[FIRST] = [(403, {})]
    with pytest.raises(InputError, match="refuses with status 403"): fetch(tmp_path / "cmu", site)
    (site.root / "subjects").rename(site.root / "elsewhere")
    with pytest.raises(InputError, match="no file to fetch"): fetch(tmp_path / "cmu", site, files=None)
    with pytest.raises(InputError, match="after 2 attempts"): download(tmp_path / "cmu", files=NAMES, site="http://127.0.0.1:1", attempts=2, pause=0, sleep=lambda s: None)


def test_too_large(site, tmp_path, monkeypatch):
    monkeypatch.setattr(cmu_download, "LARGEST", 500)
    with pytest.raises(InputError, match="500 at most"): fetch(tmp_path / "cmu", site)


# ---------- digests

def test_a_damaged_file_is_fetched_again(site, tmp_path):
    fetch(tmp_path / "cmu", site)
    (tmp_path / "cmu" / NAMES[1]).write_bytes(b"damaged")
    done = fetch(tmp_path / "cmu", site)
    assert done.fetched == NAMES[1:] and all(whole(tmp_path / "cmu", site).values())


def test_another_content_than_at_first_is_refused(site, tmp_path):
    fetch(tmp_path / "cmu", site)
    (tmp_path / "cmu" / NAMES[1]).unlink()
    (site.root / FIRST).write_bytes((site.root / FIRST).read_bytes() + b"\n")
    with pytest.raises(InputError, match="not the one of the first download"): fetch(tmp_path / "cmu", site)
    assert not (tmp_path / "cmu" / NAMES[1]).exists()
    lines = (tmp_path / "cmu" / MANIFEST).read_text().splitlines()
    (tmp_path / "cmu" / MANIFEST).write_text("\n".join(line for line in lines if NAMES[1] not in line) + "\n")
    assert fetch(tmp_path / "cmu", site).fetched == NAMES[1:]


def test_known_contents(site, tmp_path, monkeypatch):
    right, other = (hashlib.sha256((site.root / "subjects" / n).read_bytes().replace(b"\n", b"\r\n")).hexdigest() for n in NAMES)
    monkeypatch.setattr(cmu_download, "read_sums", lambda path: {NAMES[0]: right, NAMES[1]: "0" * 64} if Path(path).name == "SHA256SUMS" else {})
    done = fetch(tmp_path / "cmu", site)
    assert done.differs == NAMES[1:] and "of 1 the content is not the one of SHA256SUMS" in str(done)
    copied = tmp_path / "copied" / "03"
    copied.mkdir(parents=True)
    (copied / "03.asf").write_bytes((site.root / "subjects/03/03.asf").read_bytes())
    assert fetch(tmp_path / "copied", site, files=NAMES[:1]).kept == NAMES[:1]


def test_the_known_digests_are_those_of_the_protocol():
    sums = read_sums(cmu_download.project_root() / "data_recipes" / "cmu" / "SHA256SUMS")
    assert len(sums) == 98 and set(sums) == set(protocol_files())


@pytest.mark.data
def test_the_real_files_have_the_known_digests(cmu_root):
    known = read_sums(cmu_download.project_root() / "data_recipes" / "cmu" / "SHA256SUMS")
    for name in protocol_files()[::9]: assert same_content((cmu_root / name).read_bytes(), known[name])


def test_names():
    assert named_files("see 5/5_1.amc, x/05_01.amc, 05/05_01.amc, 05/06_01.amc, 1105/1105_01.amc, 05/05_01.amcx, ../05/05.asf") == ["05/05.asf", "05/05_01.amc", "5/5.asf", "5/5_1.amc"]
    assert named_files("") == [] and len(protocol_files()) == 98 and protocol_files()[0] == "01/01.asf"


# ---------- a kill in the middle

RUN = "import sys; from poseprojects.data import cmu_download as c; print(c.download(sys.argv[1], files=sys.argv[3:], site=sys.argv[2], pause=0))"


def test_a_killed_download_goes_on(site, tmp_path):
    cmu.example(site.root / "subjects", frames=150) # some 300 kB, so that it takes a while
    site.faults[FIRST] = ["slow"]
    process = subprocess.Popen([sys.executable, "-c", RUN, str(tmp_path / "cmu"), site.url, *NAMES], env=os.environ, stdout=subprocess.PIPE, text=True)
    part, deadline = tmp_path / "cmu/03/.03_01.amc.part", time.monotonic() + 60
    while not (part.is_file() and part.stat().st_size > 20_000) and time.monotonic() < deadline: time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=30)
    assert process.returncode == -signal.SIGKILL and not (tmp_path / "cmu" / NAMES[1]).exists() and (tmp_path / "cmu" / NAMES[0]).is_file()
    had = part.stat().st_size
    with open(tmp_path / "cmu" / MANIFEST, "a") as file: file.write("0123abcd  03/03_0") # and a line that was cut
    done = fetch(tmp_path / "cmu", site)
    assert done.kept == NAMES[:1] and done.fetched == NAMES[1:] and all(whole(tmp_path / "cmu", site).values())
    assert site.asked[-1][1]["Range"] == f"bytes={had}-" and set(read_sums(tmp_path / "cmu" / MANIFEST)) == set(NAMES)


def test_two_downloads_into_one_folder(site, tmp_path):
    held = []
    def second(seconds):
        with pytest.raises(InputError, match="another download"): fetch(tmp_path / "cmu", site)
        held.append(1)
    fetch(tmp_path / "cmu", site, pause=1, sleep=second)
    assert held == [1]


def test_a_folder_that_cannot_be_written(site, tmp_path):
    (tmp_path / "cmu").mkdir()
    (tmp_path / "cmu" / "03").write_text("a file where a folder should be")
    with pytest.raises(InputError, match="could not be filled"): fetch(tmp_path / "cmu", site)


def test_the_command(site, tmp_path, capsys):
    (tmp_path / "list.txt").write_text("\n".join(NAMES))
    assert main([str(tmp_path / "cmu"), "--files", str(tmp_path / "list.txt"), "--pause", "0", "--site", site.url]) == 0
    assert "subject 03 (0 of 2 files)\n2 files fetched, 0 were there" in capsys.readouterr().out
    assert main([str(tmp_path / "cmu"), "--files", str(tmp_path / "nothing")]) == 2 and "no such list" in capsys.readouterr().err


def test_what_was_fetched_can_be_converted(site, tmp_path, fresh_cache):
    cmu.example(site.root / "subjects")
    fetch(tmp_path / "cmu", site, files=None)
    (tmp_path / "cmu" / "trials.csv").write_bytes((site.root / "subjects" / "trials.csv").read_bytes())
    assert len(cmu.load("test", tmp_path / "cmu")) == 192
