"""How the peer tests are written: a check is a function whose name says what it shows.

    @check
    def gguf_reader_opens_both_files(case): ...

A check gets one Case (a model, an adapter, what qmoon made of them), raises Differ when something is not as it
should be, and may return a short text: the figure it measured.
"""

import hashlib
import json
import re
import subprocess
import traceback
from collections import Counter
from pathlib import Path

import numpy as np

CHECKS = []


def check(function):
    CHECKS.append(function)
    return function


class Differ(Exception):
    """What differs, where, and from what.  The message is the report."""


class NotRun(Exception):
    """A peer cannot do what the check asks of it; why.  Counted apart."""


class Case:
    """One base and adapter, the five outputs of `qmoon pipeline`, and files quantised from them on demand."""

    def __init__(self, name, qmoon, base, adapter, work, outputs=None, llama=None):
        self.name, self.qmoon, self.llama = name, qmoon, llama
        self.base, self.adapter, self.work = Path(base), Path(adapter), Path(work) / name
        self.out = Path(outputs) if outputs else self.work / "out"
        self.given = outputs is not None
        self._made = {}

    def prepare(self):
        """The pipeline itself, unless its outputs were given."""
        self.work.mkdir(parents=True, exist_ok=True)
        if not self.given:
            self.run("pipeline", "--base", self.base, "--adapter", self.adapter, "--out", self.out)
        for output in ("merged-fp16", "model-int8", "model-int4", "model.gguf", "model-q4_0.gguf"):
            if not (self.out / output).exists():
                raise Differ(f"{self.out / output} was not written")

    def run(self, *arguments):
        """qmoon with these arguments; its standard output.  Anything but exit status 0 is a failure."""
        command = [str(self.qmoon), *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace")
        if done.returncode != 0:
            raise Differ(f"{' '.join(command)}\nended with {done.returncode}: "
                         f"{done.stderr.strip()[-1500:] or done.stdout.strip()[-1500:]}")
        return done.stdout

    def quantized(self, type_name, *flags, source="merged-fp16", folder=False):
        """The path of `qmoon quantize OUT/source … --type type_name flags`; made once."""
        name = "-".join([source.replace(".", "_"), type_name, *flags]).replace("--", "") + ("" if folder else ".gguf")
        return self.made(name, lambda path: self.run(
            "quantize", self.out / source, path, "--type", type_name, *flags))

    def made(self, name, make):
        """The path work/NAME, made on first use by make(path).  A failure is remembered, not tried again."""
        if name not in self._made:
            path = self.work / name
            try:
                make(path)
                self._made[name] = path
            except Exception as failure:
                self._made[name] = failure
        if isinstance(self._made[name], Exception):
            raise self._made[name]
        return self._made[name]

    def config(self):
        return json.loads((self.base / "config.json").read_text())


def run_checks(checks, cases, only=""):
    """Run every check on every case; print one line each and `N passed, N failed`.  True when nothing failed."""
    count = Counter()
    for case in cases:
        wanted = [c for c in checks if only in title(case, c)]
        if not wanted:
            continue
        start = attempt(lambda _: case.prepare(), case, f"{case.name}: the pipeline runs")
        count[start] += 1
        if start == "FAIL":
            print(f"FAIL  {case.name}: the {len(wanted)} checks of its outputs, which are not there")
            count["FAIL"] += len(wanted)
            continue
        count.update(attempt(function, case, title(case, function)) for function in wanted)
    if count["--"]:
        print(f"{count['--']} not run, where a peer cannot (--)")
    print(f"{count['ok']} passed, {count['FAIL']} failed")
    return count["FAIL"] == 0


def title(case, function):
    words = function.__name__.replace("_", " ")
    return f"{case.name}: " + re.sub(r"(q[468]) ([0k])", r"\1_\2", words)


def attempt(function, case, name):
    """Run one check and print its line: "ok", "FAIL" or "--" (not run), which is also the answer."""
    try:
        note = function(case)
    except NotRun as why:
        print(f"--    {name}  ({why})", flush=True)
        return "--"
    except Differ as differ:
        text = str(differ)
    except Exception:
        text = traceback.format_exc(limit=-4)
    else:
        print(f"ok    {name}" + (f"  ({note})" if note else ""), flush=True)
        return "ok"
    print(f"FAIL  {name}\n      " + text.strip().replace("\n", "\n      "), flush=True)
    return "FAIL"


# Comparisons -------------------------------------------------------------------------------------


def same(what, ours, theirs):
    """Two plain values."""
    if ours != theirs:
        raise Differ(f"{what}: {shorten(ours)}, expected {shorten(theirs)}")


def same_names(what, ours, theirs):
    """Two sets of names."""
    missing, extra = sorted(set(theirs) - set(ours)), sorted(set(ours) - set(theirs))
    if missing or extra:
        raise Differ(f"{what}: missing {shorten(missing)}, not expected {shorten(extra)}")


def same_array(what, ours, theirs):
    """Two arrays, bit for bit (so that NaN equals itself and -0 is not +0)."""
    ours, theirs = np.ascontiguousarray(ours), np.ascontiguousarray(theirs)
    if ours.dtype != theirs.dtype or ours.shape != theirs.shape:
        raise Differ(f"{what}: {ours.dtype}{list(ours.shape)}, expected {theirs.dtype}{list(theirs.shape)}")
    if ours.tobytes() == theirs.tobytes():
        return
    word = np.dtype(f"u{ours.dtype.itemsize}")
    where = np.flatnonzero(ours.view(word).ravel() != theirs.view(word).ravel())
    at = where[0]
    raise Differ(f"{what}: {where.size} of {ours.size} differ, first at {np.unravel_index(at, ours.shape)}: "
                 f"{ours.ravel()[at]!r}, expected {theirs.ravel()[at]!r}")


def same_bytes(what, ours, theirs):
    """Two files' contents."""
    if ours == theirs:
        return
    shorter = min(len(ours), len(theirs))
    differ = np.flatnonzero(np.frombuffer(ours[:shorter], "u1") != np.frombuffer(theirs[:shorter], "u1"))
    at = int(differ[0]) if differ.size else shorter
    raise Differ(f"{what}: {len(ours)} bytes sha256 {digest(ours)}, expected {len(theirs)} bytes sha256 "
                 f"{digest(theirs)}; first difference at byte {at}:\n"
                 f"ours     {ours[max(0, at - 24):at + 40]!r}\nexpected {theirs[max(0, at - 24):at + 40]!r}")


def within(what, error, bound):
    """Every |error| at most its bound (arrays or numbers).  The largest share of the bound that was used."""
    error, bound = np.broadcast_arrays(np.abs(np.asarray(error, np.float64)), np.asarray(bound, np.float64))
    over = np.flatnonzero(~(error.ravel() <= bound.ravel()))
    if over.size:
        at = over[0]
        raise Differ(f"{what}: {over.size} of {error.size} beyond the bound, first at "
                     f"{np.unravel_index(at, error.shape)}: {error.ravel()[at]:.6g} > {bound.ravel()[at]:.6g}")
    return float(np.max(error / np.where(bound > 0, bound, 1), initial=0))


def at_most(what, value, limit):
    if not value <= limit:
        raise Differ(f"{what}: {value:.6g}, allowed {limit:.6g}")
    return value


def digest(data):
    return hashlib.sha256(data).hexdigest()[:16]


def shorten(value, limit=200):
    text = repr(value)
    return text if len(text) <= limit else text[:limit] + f"… ({len(text)} characters)"
