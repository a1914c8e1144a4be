"""What a question asks for, where its wording leaves no doubt, whatever the trained head makes of it. English."""

from __future__ import annotations

import re

_VIDEO = r"(it|this( one)?|that|the (video|clip|film))"
_SEEN = "|".join(
    (
        "(did|have) (you|we|i) (see|seen|miss|missed)",
        rf"(is|are|was|were)( there)? in {_VIDEO}",
        "(has |have |did )?(appear(ed|s)?|happen(ed)?)",
        "(was|were|has been|have been) (shown|seen|there)",
        "went on",
    )
)
_AND, _ONE = "and |so |okay,? ", "(it|that|this|he|she|they|them)"
_CAME = "(came|comes|happened|happens|was|is|follows|followed)"
_THERE = "(appear|come|happen|shown|seen|there)"

_WORDINGS = (
    (r"\b(when|what time|at which)\b.*\bfirst\b(?! (thing|scene|shot))", "find"),
    (r"^(please |can you |could you |do you )*(find|locate|show me|jump to|go to)\b(?!.*\d)", "find"),
    (r"\bhad been shown when\b|\b(right|just|what (came|comes|happened|was)) before\b", "before"),
    (rf"^\W*({_AND})?(what (about )?)?({_CAME} )?before( {_ONE})?\W*$", "before"),
    (rf"^\W*({_AND})?(what )?({_CAME} )?(then|next|after(wards)?( {_ONE})?)\W*$", "after"),
    (rf"^\W*({_AND})?(when|at what time)( (is|was|did|does) {_ONE}( {_THERE})?)?\W*$", "find"),
    (rf"^\W*({_AND})?what time (was|did) {_ONE}( {_THERE})?\W*$", "find"),
    (r"^\W*(so,? |please,? |okay,? |hey,? |and )*describe (it|this|the (picture|scene|image|frame))\W*$", "now"),
    (r"\b(vi?d(ie|e)o|clip|film)( is)?( all)? about\b|\babout (this|the) (video|clip|film)\b", "list"),
    (r"\bfrom start to end\b|\bsummar|\brecap\b|\boverview\b|\bimportant scenes\b", "list"),
    (r"\bhow many (scenes|shots|cuts)\b(?!.*\b(show|have|contain|with|is there|do you see|can you see)\b)", "count"),
    (r"\bhow (often|many times)\b", "count_of"),
    (
        # "What did you see?", "What animals were in the video?": of all of it, not of now
        rf"^\W*(so,? |and |okay,? )?(what|which|who)( (kinds?|sorts?|types?) of)?( (?!colou?r)\w+)?( else)? ({_SEEN})"
        rf"( in {_VIDEO})?( (so far|until now|up to now|by now|already|overall|altogether|in total|at all))?\W*$",
        "list",
    ),
    (r"\b(number of|how many) (?!scenes|shots|cuts|times|days|minutes|legs|of the)", "about"),
    (r"^(what|which) (is the )?colou?r\b", "about"),
    (
        r"^\W*(how|what) (does|do|did) (it|this|that|the (video|clip|film))( one)? (open|begin|start)( with)?\W*$",
        "first",
    ),
    (r"\b(when (it|this|the (video|clip|film)) ends|how (does|did) (it|this|the (video|clip|film)) end)\b", "last"),
)
_REFERRING = {"it", "that", "they", "them", "he", "she", "there", "next", "then"}
CUES = {
    "so far": r"\b(by now|so far|yet|(up to|until) now|ever|at any (point|time)|at some point)\b",
    "now": r"\b(right now|just now|now|currently|at (the|this) moment|at this point|still)\b",
    "first": r"\bfirst\b",
    "last": r"\blast\b",
    "negated": r"\b(nobody|no one|no-one|empty|without)\b",
    "counts": r"\b(how many|count|number of)\b",
    "who": r"^\W*who\b",
    "yes or no": r"^\W*(is|are|was|were|did|do|does|has|have|had|any)\b",
    "when or where": r"^\W*(when|at what time|where)\b",
}


def wording_plan(text: str) -> str | None:
    """The plan of a wording that leaves no doubt, or None."""
    lowered = re.sub(r"\b(what|who)['’]s\b", r"\1 is", text.lower().strip())
    return next((plan for pattern, plan in _WORDINGS if re.search(pattern, lowered)), None)


def cues(text: str) -> frozenset[str]:
    """Which of CUES a question holds."""
    return frozenset(name for name, pattern in CUES.items() if re.search(pattern, text, re.IGNORECASE))


def points_back(text: str) -> bool:
    """Whether a question that names nothing itself may be about what the last one was about."""
    words_of = re.findall(r"[a-z']+", text.lower())
    return len(words_of) < 3 or any(word in _REFERRING for word in words_of)


def asks_length(text: str) -> bool:
    """Whether the question is how long the video is."""
    pattern = rf"\bhow long (is|was) {_VIDEO}\b(?! (in|on|there))|\b(length|duration) of {_VIDEO}\b"
    return bool(re.search(pattern, text, re.IGNORECASE))
