"""The page: layout and wiring, read top to bottom like the page itself."""

from __future__ import annotations

from html import escape
from pathlib import Path

import gradio as gr
from starlette.middleware import Middleware

from app.api import add_api
from app.events import EXAMPLE, START, UPLOAD, WEBCAM, Events
from app.headers import Headers
from app.panels import SUGGESTIONS, film, metrics, state_line
from app.session import Sessions
from pipeline import Engine

HERE = Path(__file__).parent
ROOT = HERE.parent
EXAMPLE_CLIP = ROOT / "assets" / "example.mp4"
MAX_UPLOAD = "2gb"
OWN, RIVAL = "#0d9488", "#d97706"  # teal: the state-space model; amber: the transformer beside it

PLAY = '(...values) => { if (values[0] !== "Pause") window.vambaPlay?.(); return values; }'
REMEMBER = "(key) => { sessionStorage.setItem('vamba-live', key); }"
RECALL = "() => [sessionStorage.getItem('vamba-live') ?? '']"
PRIVATE = {"api_visibility": "private", "show_progress": "hidden"}
AT_ONCE = {**PRIVATE, "queue": False}


def theme() -> gr.themes.Base:
    """System fonts (nothing is fetched), one accent, thin borders."""
    fonts = ["ui-sans-serif", "system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]
    return gr.themes.Base(
        primary_hue="teal", neutral_hue="slate", radius_size="lg", font=fonts, font_mono=["ui-monospace", "monospace"]
    )


def build(sessions: Sessions, example: Path = EXAMPLE_CLIP) -> gr.Blocks:
    """The Blocks of the page over a table of sessions."""
    do = Events(sessions, example)
    engine, rival = sessions.engine, sessions.rival
    with gr.Blocks(title="Vamba Live", fill_width=True, analytics_enabled=False, delete_cache=(600, 8 * 3600)) as page:
        key = gr.State(None)
        player, ticket = gr.Number(0, visible=False), gr.Textbox(visible=False)
        asked, pinned_at = gr.State(""), gr.State(None)

        with gr.Row(elem_id="top"):
            gr.HTML(_headline(engine), elem_id="brand")
            comparing = gr.Checkbox(
                label=f"Compare with {rival.name}" if rival else "Compare",
                visible=rival is not None,
                container=False,
                elem_id="compare",
                scale=0,
                min_width=220,
            )

        with gr.Row(elem_id="main", equal_height=False):
            with gr.Column(elem_id="left", scale=6, min_width=320):
                source = gr.Radio(
                    [EXAMPLE, UPLOAD, WEBCAM], value=EXAMPLE, show_label=False, container=False, elem_id="source"
                )
                with gr.Group(elem_id="stage"):
                    clip = gr.Video(
                        str(example),
                        interactive=False,
                        show_label=False,
                        elem_id="example",
                        buttons=[],
                        container=False,
                    )
                    upload = gr.Video(
                        sources=["upload"],
                        interactive=True,
                        show_label=False,
                        visible=False,
                        elem_id="upload",
                        buttons=[],
                        container=False,
                    )
                    camera = gr.Image(
                        sources=["webcam"],
                        streaming=True,
                        type="numpy",
                        show_label=False,
                        visible=False,
                        elem_id="camera",
                        webcam_options=gr.WebcamOptions(mirror=False, constraints={"video": {"width": {"ideal": 640}}}),
                        container=False,
                    )
                line = gr.HTML(state_line(None), elem_id="line")
                spoken = gr.HTML("", elem_id="spoken")
                with gr.Row(elem_id="controls"):
                    main = gr.Button(START, variant="primary", elem_id="go", scale=0, min_width=140)
                    reset = gr.Button("Reset", variant="secondary", elem_id="reset", scale=0, min_width=90)
                    gr.HTML(
                        f"Files up to {MAX_UPLOAD[:-2]} GB, deleted on Reset or an hour after you leave.",
                        elem_id="limits",
                    )

            with gr.Column(elem_id="right", scale=5, min_width=320):
                with gr.Row(elem_id="chats"):
                    chat = _chatbot(engine.name, "chat")
                    second = _chatbot(rival.name if rival else "", "second", visible=False)
                with gr.Row(elem_id="suggestions"):
                    suggested = [gr.Button(words, size="sm", elem_classes="suggestion") for words in SUGGESTIONS]
                question = gr.Textbox(
                    placeholder="Ask about the video while it plays",
                    show_label=False,
                    label="Question",
                    lines=1,
                    max_lines=4,
                    max_length=2000,
                    submit_btn=True,
                    container=False,
                    elem_id="question",
                )
                with gr.Row(elem_id="chatbar"):
                    pinned = gr.Checkbox(label="At the player's time", container=False, elem_id="pinned", scale=1)
                    stop = gr.Button("Stop", size="sm", elem_id="stop", scale=0, min_width=64)
                    retry = gr.Button("Retry", size="sm", elem_id="retry", scale=0, min_width=64)
                    clear = gr.Button("Clear", size="sm", elem_id="clear", scale=0, min_width=64)

        film_strip = gr.HTML(film(None), elem_id="film")
        strip = gr.HTML(metrics(None), elem_id="strip")
        with gr.Row(visible=False, elem_id="plots") as plots:
            names = {engine.name: OWN, **({rival.name: RIVAL} if rival else {})}
            curves = [_plot(kind, title, unit, names) for kind, title, unit in PLOTS]

        clock, plot_clock = gr.Timer(0.5), gr.Timer(2.0, active=False)

        # The source
        source.change(do.choose, source, [upload, camera, clip], **AT_ONCE)
        upload.upload(do.uploaded, [upload, key], [key, line], **PRIVATE)
        camera.stream(
            do.camera, [camera, key], [key, line], stream_every=1.0, time_limit=None, concurrency_limit=None, **PRIVATE
        )
        main.click(do.press, [main, source, upload, key], [key, line], js=PLAY, **AT_ONCE)
        gr.on([reset.click, upload.clear], do.reset, key, [line, chat, second, upload], **AT_ONCE)
        comparing.change(do.compare, [comparing, key], [key, second, plots, plot_clock, line], **AT_ONCE)

        # The chat
        def ask(trigger, words):
            sent = trigger(
                do.accept, [words, pinned, player, key], [key, question, asked, pinned_at], js=_with_time(2), **AT_ONCE
            )
            answer(sent.success, again=False)

        def answer(after, again: bool) -> None:
            for column, box in enumerate((chat, second)):

                def grow(text, at, key, column=column):
                    yield from do.answer(column, again, text, at, key)

                after(grow, [asked, pinned_at, key], box, concurrency_limit=None, **PRIVATE)

        ask(question.submit, question)
        for button in suggested:
            ask(button.click, button)
        stop.click(do.stop, key, None, **AT_ONCE)
        answer(retry.click(do.retry, key, [asked, pinned_at], **AT_ONCE).success, again=True)
        clear.click(do.clear, key, [chat, second], **AT_ONCE)

        # The clock
        clock.tick(do.tick, [player, source, key], [line, spoken, strip, film_strip, main], js=_with_time(0), **AT_ONCE)
        plot_clock.tick(do.plots, key, curves, **AT_ONCE)
        page.unload(do.left)

        # A reload in the same tab finds its stream again: the tab itself remembers the key.
        key.change(lambda key: key, key, ticket, **AT_ONCE).then(None, ticket, None, js=REMEMBER)
        page.load(do.restore, ticket, [key, source, comparing, chat, second], js=RECALL, **AT_ONCE)
        add_api(sessions)
    return page


PLOTS = (
    (gr.LinePlot, "Time per frame", "ms"),
    (gr.LinePlot, "State and memory held", "MB"),
    (gr.ScatterPlot, "First word of an answer after", "s"),
)


def _headline(engine: Engine) -> str:
    name, backend, about = (escape(text) for text in (engine.name, engine.backend, engine.about))
    return f'<h1>Vamba Live</h1><span class="engine">{name}<i>{backend}</i></span><p class="about">{about}</p>'


def _chatbot(name: str, elem_id: str, visible: bool = True) -> gr.Chatbot:
    """Renders no markup at all: a model's words are words."""
    return gr.Chatbot(
        label=name,
        elem_id=elem_id,
        visible=visible,
        height=420,
        render_markdown=False,
        sanitize_html=True,
        buttons=[],
        layout="bubble",
        group_consecutive_messages=False,
        feedback_options=None,
        latex_delimiters=[],
        allow_tags=False,
        placeholder="Ask at any moment. Answers point at the moments they rest on.",
    )


def _plot(kind: type, title: str, unit: str, names: dict[str, str]) -> gr.LinePlot | gr.ScatterPlot:
    return kind(
        x="second",
        y=unit,
        color="model",
        color_map=names,
        title=title,
        x_title="second of the video",
        y_title=unit,
        height=220,
        buttons=[],
    )


def _with_time(index: int) -> str:
    """JavaScript that puts the player's second in place of one input, when the event is sent."""
    return (
        f"(...values) => {{ values[{index}] = window.vambaPlayerTime ? window.vambaPlayerTime() : 0; return values; }}"
    )


def launch_options() -> dict:
    """What launch() takes in Gradio 6 for the look of the page and its limits."""
    return {
        "theme": theme(),
        "css_paths": [HERE / "style.css"],
        "js": (HERE / "page.js").read_text(),
        "footer_links": [],
        "max_file_size": MAX_UPLOAD,
        "show_error": False,
        "ssr_mode": False,
        "pwa": False,
        "run_history": False,
        "mcp_server": False,
        "enable_monitoring": False,
        "app_kwargs": {"middleware": [Middleware(Headers)]},
    }
