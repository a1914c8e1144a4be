"""The page: layout and wiring, read top to bottom like the page itself."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
from gradio.data_classes import FileData
from gradio.events import Dependency
from starlette.middleware import Middleware

from app.api import add_api
from app.live.face import Table
from app.live.view import EXAMPLE, SCREEN, UPLOAD, WEBCAM
from app.page import alerts, forking, keeping, recalled, summary
from app.page.channel import Channel
from app.page.feed import Feed
from app.page.handlers import START, Events
from app.page.headers import Headers
from app.page.panels import NOTHING, brief, metrics, state_line
from app.page.uploading import Uploading
from pipeline import example_clip

HERE = Path(__file__).parent
MAX_UPLOAD = "2gb"
SCRIPTS = ("page", "compare", "timeline", "subtitles", "alerts", "copy", "clips", "camera", "operator", "tabs")

WELCOME = (
    "Ask at any moment, also while it is still watching.<br>Answers show the moments they rest on; a click goes there."
)

# The page's script has the camera on, or knows why not, before the server hears of the press.
PRESS = """async (...values) => {
    values[4] = (await window.vambaPress?.(values[0], values[1])) ?? "";
    if (values[0] === "Start") window.vambaStart?.();
    if (values[0] === "Watch again") window.vambaAgain?.();
    return values;
}"""
RESET = "(...values) => { window.vambaCameraOff?.(); return values; }"
REMEMBER = "(key) => { if (key) sessionStorage.setItem('vamba-live', key); window.vambaListen?.(); }"
DEED = "(...values) => { values[0] = window.vambaDeed; return values; }"
SAVE = "(text) => window.vambaSave(text, {name!r}, {kind!r})"
RECALL = "() => [sessionStorage.getItem('vamba-live') ?? '']"
HELD = "#film .film:hover, :is(#suggestions, #summary):hover, :is(#film, #suggestions, #summary) :focus-visible"
LOOK = """(...values) => {
    values[0] = window.vambaPlayerTime?.() ?? 0;
    values[3] = window.vambaFilming?.() ?? false;
    values[4] = document.querySelector(HELD) !== null;
    return values;
}""".replace("HELD", f"'{HELD}'")
CAMERA = (
    '<div class="live"><video muted playsinline aria-label="What is being filmed"></video>'
    "<p>Nothing is filmed. Press the button below.</p></div>"
)
SHARED = (
    '<div class="live"><img hidden alt="The newest picture of this source">'
    "<p>This source is watched for everybody. Press the button below to see it and to ask about it.</p></div>"
)
MINE = (
    "<details><summary>My streams</summary><p>Streams that this browser started are listed here, while they are kept."
    "</p><ul></ul></details>"
)
PRIVATE: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
AT_ONCE: dict[str, Any] = {**PRIVATE, "queue": False}


def theme() -> gr.themes.Base:
    """System fonts (nothing is fetched), one accent, thin borders."""
    fonts = ["ui-sans-serif", "system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]
    return gr.themes.Base(
        primary_hue="teal", neutral_hue="slate", radius_size="lg", font=fonts, font_mono=["ui-monospace", "monospace"]
    )


def build(sessions: Table, example: Path | None = None) -> gr.Blocks:
    """The Blocks of the page over a table of sessions. example: another clip than the one that ships along."""
    example = example or example_clip()
    gr.set_static_paths([example])  # served as it is: never probed, never copied
    do, ui = Events(sessions, example), SimpleNamespace()
    with gr.Blocks(title="Vamba Live", fill_width=True, analytics_enabled=False, delete_cache=(600, 8 * 3600)) as page:
        # The page itself carries the key of its session. In a gr.State whoever guesses Gradio's short session hash
        # could use it.
        ui.key, ui.saved = gr.Textbox(visible="hidden", elem_id="key"), gr.Textbox(visible=False)
        ui.refused = gr.Textbox(visible=False)
        ui.filming, ui.held = gr.Checkbox(visible=False), gr.Checkbox(visible=False)
        ui.look = gr.Button("Look", visible="hidden", elem_id="tick")
        ui.open = gr.Button("Open", visible="hidden", elem_id="open")
        ui.player = gr.Number(0, visible=False)
        ui.deed = gr.Button("Within the conversation", visible="hidden", elem_id="deed")  # pressed by page.js alone
        ui.said = gr.HTML("", elem_id="said")
        _top(ui, sessions)
        with gr.Row(elem_id="main", equal_height=False):
            with gr.Column(elem_id="left", scale=6, min_width=320):
                _heading("Video")
                _stage(ui, sessions, example)
                _controls(ui)
                forking.add(ui)
                if sessions.shelf:
                    keeping.add(ui)
            with gr.Column(elem_id="right", scale=5, min_width=320):
                _heading("Conversation")
                _conversation(ui, sessions)
        with gr.Row(elem_id="noticed", equal_height=False):
            alerts.add(ui)
            summary.add(ui)
        recalled.add(ui)
        _strip(ui, sessions)
        _wire_source(ui, do)
        _wire_chat(ui, do)
        _wire_clock(ui, do, page)
        forking.wire(ui, sessions, page, AT_ONCE)
        if sessions.shelf:
            keeping.wire(ui, sessions, page, AT_ONCE)
        alerts.wire(ui, sessions, AT_ONCE)
        recalled.wire(ui, sessions, AT_ONCE)
        add_api(sessions)
    return page


# The layout


def _top(ui: SimpleNamespace, sessions: Table) -> None:
    engine, rival = sessions.engine, sessions.rival
    with gr.Row(elem_id="top"):
        name, backend, about = (escape(text) for text in (engine.name, engine.backend, engine.about))
        gr.HTML(
            f'<h1>Vamba Live</h1><span class="engine">{name}<i>{backend}</i></span><p class="about">{about}</p>',
            elem_id="brand",
        )
        gr.HTML(MINE, elem_id="mine")
        label = f"Compare with {brief(rival.name)}" if rival else "Compare"
        ui.comparing = gr.Checkbox(label=label, visible=rival is not None, container=False, elem_id="compare", scale=0)


def _heading(words: str) -> None:
    """For who moves by headings; those who see the page need none."""
    gr.HTML(f"<h2>{words}</h2>", elem_classes="unseen")


def _stage(ui: SimpleNamespace, sessions: Table, example: Path) -> None:
    """The sources: a visitor's own, then the operator's by their names.

    The upload's player shows the file as it came: Gradio runs ffmpeg on what comes in only if `format` or
    `include_audio` asks for it, but ffprobe or ffmpeg on all that goes out, unless it is told not to: hostile files
    make those read others."""
    bare: dict[str, Any] = {"show_label": False, "container": False}
    kinds = [EXAMPLE, UPLOAD, WEBCAM, SCREEN, *sessions.shared]
    ui.source = gr.Radio(kinds, value=EXAMPLE, label="Source", elem_id="source", **bare)
    with gr.Column(elem_id="stage"):
        ui.clip = gr.Video(str(example), interactive=False, elem_id="example", buttons=[], **bare)
        ui.upload = gr.Video(sources=["upload"], interactive=True, visible=False, elem_id="upload", buttons=[], **bare)
        ui.upload.postprocess = lambda path: FileData(path=path) if path else None
        ui.camera = gr.HTML(CAMERA, visible="hidden", elem_id="camera")
        ui.shared = gr.HTML(SHARED, visible=False, elem_id="operator")


def _controls(ui: SimpleNamespace) -> None:
    ui.line = gr.HTML(state_line(NOTHING), elem_id="line")
    ui.spoken = gr.HTML("", elem_id="spoken")  # for screen readers, and only when the state changes
    with gr.Row(elem_id="controls"):
        ui.main = gr.Button(START, variant="primary", elem_id="go", scale=0, min_width=140)
        ui.reset = gr.Button("Reset", variant="secondary", elem_id="reset", scale=0, min_width=90)
        limits = f"Files up to {MAX_UPLOAD[:-2]} GB, deleted half a minute after Reset, or an hour after you leave."
        gr.HTML(limits, elem_id="limits")
    ui.film = gr.HTML("", elem_id="film")


def _conversation(ui: SimpleNamespace, sessions: Table) -> None:
    with gr.Row(elem_id="chats"):
        ui.chat = _chatbot(brief(sessions.engine.name), "chat")
        ui.second = _chatbot(brief(sessions.rival.name) if sessions.rival else "", "second", visible=False)
    with gr.Row(elem_id="suggestions"):
        ui.suggested = [gr.Button(words, size="sm") for words in summary.suggested(NOTHING)]
    ui.question = gr.Textbox(
        placeholder="Ask about the video while it plays",
        label="Question",
        show_label=False,
        container=False,
        lines=1,
        max_lines=4,
        submit_btn=True,
        elem_id="question",
    )
    with gr.Row(elem_id="chatbar"):
        ui.pinned = gr.Checkbox(label="At the player's time", container=False, elem_id="pinned", scale=1)
        ui.stop, ui.retry, ui.clear = (_small(word) for word in ("Stop", "Retry", "Clear"))
        ui.undo, ui.undo_clock = _small("Undo", visible=False), gr.Timer(2.0, active=False)
    with gr.Row(elem_id="saving"):
        ui.markdown, ui.json = _small("Save as text"), _small("Save as JSON")
        ui.vtt, ui.srt, ui.csv = _small("Save as VTT"), _small("Save as SRT"), _small("Save as CSV")


def _small(word: str, visible: bool = True) -> gr.Button:
    elem_id = word.lower().replace(" ", "-")
    return gr.Button(word, size="sm", elem_id=elem_id, scale=0, min_width=64, visible=visible)


def _chatbot(name: str, elem_id: str, visible: bool = True) -> gr.Chatbot:
    """Renders no Markdown: a model's words are words (and `chat.messages` escapes its HTML)."""
    return gr.Chatbot(
        label=name,
        elem_id=elem_id,
        visible=visible,
        height=420,
        render_markdown=False,
        sanitize_html=True,
        allow_tags=False,
        latex_delimiters=[],
        buttons=[],
        layout="bubble",
        group_consecutive_messages=False,
        feedback_options=None,
        placeholder=WELCOME,
    )


def _strip(ui: SimpleNamespace, sessions: Table) -> None:
    ui.metrics = gr.HTML(metrics(NOTHING), elem_id="strip")
    with gr.Column(visible=False, elem_id="costs") as ui.costs:
        if sessions.rival:
            name, about = escape(brief(sessions.rival.name)), escape(sessions.rival.about)
            gr.HTML(f"<h2>{name}</h2><p>{about}</p>", elem_id="about-rival")
        ui.plots = gr.HTML("", elem_id="plots")


# The wiring


def _wire_source(ui: SimpleNamespace, do: Events) -> None:
    started = [ui.key, ui.line, ui.main]
    ui.source.change(do.choose, ui.source, [ui.upload, ui.camera, ui.clip, ui.shared], **AT_ONCE)
    arrived = ui.upload.upload(do.uploaded, [ui.upload, ui.key, ui.joins], started, **PRIVATE)
    arrived.then(None, None, None, js="() => window.vambaPlay()")
    here = [ui.main, ui.source, ui.upload, ui.key, ui.refused, ui.joins]
    ui.main.click(do.press, here, started, js=PRESS, **AT_ONCE)
    forgotten = [ui.line, ui.main, ui.chat, ui.second, ui.upload, ui.undo, ui.undo_clock]
    gr.on([ui.reset.click, ui.upload.clear], do.reset, ui.key, forgotten, js=RESET, **AT_ONCE)
    ui.comparing.change(do.compare, [ui.comparing, ui.key], [ui.key, ui.second, ui.costs, ui.line], **AT_ONCE)


def _wire_chat(ui: SimpleNamespace, do: Events) -> None:
    for trigger, words in [(ui.question.submit, ui.question), *((button.click, button) for button in ui.suggested)]:
        taken = [ui.key, ui.question, ui.said]
        sent = trigger(do.accept, [words, ui.pinned, ui.player, ui.key], taken, js=_with_time(2), **AT_ONCE)
        _wire_following(ui, do, sent)
    again = ui.retry.click(do.retry, ui.key, ui.said, **AT_ONCE)
    _wire_following(ui, do, again)
    ui.stop.click(do.stop, ui.key, None, **AT_ONCE)
    both = [ui.chat, ui.second]
    ui.deed.click(do.deed, [ui.deed, ui.key], both, js=DEED, trigger_mode="multiple", **AT_ONCE)
    undoing = [ui.undo, ui.undo_clock]
    ui.clear.click(do.clear, ui.key, [ui.chat, ui.second, *undoing], **AT_ONCE)
    back = [ui.line, ui.chat, ui.second, ui.upload, ui.source, ui.said, *undoing]
    ui.undo.click(do.undo, ui.key, back, **AT_ONCE)
    ui.undo_clock.tick(do.undoable, ui.key, undoing, **AT_ONCE)
    for button, told, name, kind in (
        (ui.markdown, do.markdown, "conversation.md", "text/markdown"),
        (ui.json, do.json, "conversation.json", "application/json"),
        (ui.vtt, do.vtt, "captions.vtt", "text/vtt"),
        (ui.srt, do.srt, "captions.srt", "application/x-subrip"),
        (ui.csv, do.csv, "costs.csv", "text/csv"),
    ):
        told_now = button.click(told, ui.key, ui.saved, **AT_ONCE)
        told_now.then(None, ui.saved, None, js=SAVE.format(name=name, kind=kind))


def _wire_following(ui: SimpleNamespace, do: Events, before: Dependency) -> None:
    """Afterwards the page follows both conversations, each in an event of its own.

    trigger_mode: Gradio otherwise drops an event while its like is running, so what was asked meanwhile stayed unseen.
    """
    at_any_time = {**PRIVATE, "concurrency_limit": None, "trigger_mode": "multiple"}
    for model, box in enumerate((ui.chat, ui.second)):

        def follow(key: str | None, request: gr.Request, model: int = model) -> Iterator[Any]:
            yield from do.follow(model, key, request)

        before.then(follow, ui.key, box, **at_any_time)


def _wire_clock(ui: SimpleNamespace, do: Events, page: gr.Blocks) -> None:
    shown = [ui.line, ui.spoken, ui.metrics, ui.film, ui.main, ui.key, ui.plots, ui.alerts, ui.summary, *ui.suggested]
    shown.append(ui.recalled)
    # The page's script presses this when the stream has changed: nobody asks twice a second whether it has.
    here = [ui.player, ui.source, ui.key, ui.filming, ui.held]
    # Pressed while a look is under way, it looks once more afterwards: else Gradio drops the press, and with it the end
    # of a stream on a slow machine.
    ui.look.click(do.tick, here, shown, js=LOOK, trigger_mode="always_last", **AT_ONCE)
    ui.source.change(do.tick, here, shown, js=LOOK, **AT_ONCE)
    page.unload(do.left)
    # A reload in the same tab finds its stream again: the tab itself remembers the key.
    restored = [ui.key, ui.source, ui.comparing, ui.chat, ui.second, ui.upload]
    loaded = gr.on([page.load, ui.open.click], do.restore, ui.key, restored, js=RECALL, **AT_ONCE)
    loaded.then(do.undoable, ui.key, [ui.undo, ui.undo_clock], **AT_ONCE)
    loaded.then(do.tick, here, shown, js=LOOK, **AT_ONCE)  # a look before the key was there saw nothing
    _wire_following(ui, do, loaded)
    ui.key.change(None, ui.key, None, js=REMEMBER)


def _with_time(index: int) -> str:
    """JavaScript that puts the player's second in place of one input, when the event is sent."""
    return f"(...values) => {{ values[{index}] = window.vambaPlayerTime?.() ?? 0; return values; }}"


def launch_options(sessions: Table) -> dict:
    """What launch() takes in Gradio 6 for the look of the page, its script and its limits."""
    scripts = "".join(f"({(HERE / f'{name}.js').read_text()})();" for name in SCRIPTS)
    return {
        "theme": theme(),
        "css_paths": [HERE / "style.css"],
        "favicon_path": HERE / "icon.svg",
        "js": f"() => {{ {scripts} }}",
        "footer_links": [],
        "max_file_size": MAX_UPLOAD,
        "show_error": False,
        "ssr_mode": False,
        "pwa": False,
        "run_history": False,
        "mcp_server": False,
        "enable_monitoring": False,
        "app_kwargs": {
            "middleware": [Middleware(Headers), Middleware(Uploading)],
            "routes": [*Channel(sessions).routes(), *Feed(sessions).routes()],
        },
    }
