"""The page: what is on it, and what its buttons do."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import gradio as gr
from PIL import Image

from processor.inference import as_rgb
from tools.app.answers import Answers, named
from tools.app.markup import STYLE, of_comparison, of_fault, of_search
from utils.errors import DataError, UserError

LARGEST = "20mb"  # of an upload
FORGOTTEN = (60, 600)  # seconds: how often uploads are looked for that nobody used, and from which age they are removed
EXAMPLES = 8
FONT = ["ui-sans-serif", "system-ui", "sans-serif"]  # of the browser's own
MONO = ["ui-monospace", "monospace"]
ONE = {"concurrency_limit": 1, "concurrency_id": "network", "show_progress": "minimal"}  # the network is not shared


def make_page(answers: Answers, folder: Path) -> gr.Blocks:
    """The page, with tabs to compare two pictures, to search, and on the network.

    Args:
        folder: of uploads, which are removed once they are answered.
    """

    def answered(answer: Callable[..., str], *paths: str | None) -> str:
        """What `answer` says of uploads, or what is wrong with them; they are removed."""
        given = [path for path in paths if path]
        try:
            if len(given) < len(paths):
                return of_fault("a picture is missing" if len(paths) > 1 else "choose a picture first")
            return answer(*paths)
        except UserError as error:
            return of_fault(named(error, given))
        finally:
            for path in map(Path, given):
                if folder.resolve() in path.resolve().parent.parents:  # Gradio gives each upload its own folder
                    shutil.rmtree(path.parent, ignore_errors=True)

    with gr.Blocks(title="SVLL-ReID", analytics_enabled=False, delete_cache=FORGOTTEN) as page:
        gr.Markdown("# SVLL-ReID\nPictures are compared on this server and kept nowhere.")
        with gr.Tab("Verify"):
            _verify_tab(answers, answered)
        with gr.Tab("Search"):
            _search_tab(answers, answered)
        with gr.Tab("About"):
            gr.Markdown(f"Digest of the network and its settings: `{answers.embedder.digest}`\n\n{answers.card}")
    return page


def _verify_tab(answers: Answers, answered: Callable[..., str]) -> None:
    with gr.Row():
        first, second = _upload("First picture", "first"), _upload("Second picture", "second")
    places = gr.Checkbox(label="Show where they agree", value=True)
    with gr.Row():
        button = gr.Button("Compare", variant="primary")
        example = gr.Button(
            "Try two pictures of the gallery", visible=answers.gallery is not None and len(answers.gallery.names) > 1
        )
    result = gr.HTML()

    def compare(a: str | None, b: str | None, shown: bool) -> tuple:
        said = answered(lambda *paths: of_comparison(answers.compare(*paths, places=shown)), a, b)
        return said, None, None

    def compare_example(shown: bool) -> str:
        return answered(lambda *paths: of_comparison(answers.compare(*paths, places=shown)), *answers.gallery.names[:2])

    button.click(compare, [first, second, places], [result, first, second], api_visibility="private", **ONE)
    example.click(compare_example, places, result, api_visibility="private", **ONE)


def _search_tab(answers: Answers, answered: Callable[..., str]) -> None:
    if answers.gallery is None:
        gr.Markdown("There is nothing to search in. Start the page with `--gallery FOLDER`.")
        return
    names = answers.gallery.names
    with gr.Row():
        query = _upload("Picture", "query")
        with gr.Column():
            gr.Markdown(f"{len(names)} pictures are in the gallery.")
            top = gr.Slider(1, min(50, len(names)), value=min(10, len(names)), step=1, label="How many to find")
            places = gr.Checkbox(label="Show where the feature of the picture comes from")
            button = gr.Button("Search", variant="primary")
    pictures = {name: picture for name in names[:EXAMPLES] if (picture := _thumbnail(name))}
    gr.Markdown("Or choose one of the gallery:")
    style = {"columns": EXAMPLES, "height": "auto", "object_fit": "contain"}
    examples = gr.Gallery(pictures, show_label=False, allow_preview=False, buttons=[], **style)
    result = gr.HTML()

    def search(path: str | None, count: float, shown: bool) -> tuple:
        return answered(lambda one: of_search(answers.search(one, int(count), places=shown)), path), None

    def search_example(count: float, shown: bool, chosen: gr.SelectData) -> str:
        name = list(pictures)[chosen.index]
        return answered(lambda one: of_search(answers.search(one, int(count), places=shown)), name)

    button.click(search, [query, top, places], [result, query], api_visibility="private", **ONE)
    examples.select(search_example, [top, places], result, api_visibility="private", **ONE)


def _upload(label: str, name: str) -> gr.Image:
    """A picture that comes as the path of what was uploaded."""
    picture = gr.Image(type="filepath", sources=["upload"], label=label, height=280, elem_id=name, buttons=[])
    # Gradio would open it itself, without the guards of our reader. (It writes a file beside a class of its own.)
    picture.preprocess = lambda payload: payload.path if payload else None
    return picture


def _thumbnail(name: str) -> Image.Image | None:
    try:
        picture = as_rgb(name)
    except DataError:  # it is gone since it was embedded
        return None
    picture.thumbnail((256, 256))
    return picture


def launch(page: gr.Blocks, host: str, port: int) -> None:
    """Serve the page; returns at once."""
    page.launch(
        server_name=host,
        server_port=port,
        share=False,
        quiet=True,
        prevent_thread_lock=True,
        ssr_mode=False,
        max_file_size=LARGEST,
        footer_links=[],
        enable_monitoring=False,
        theme=gr.themes.Soft(font=FONT, font_mono=MONO),
        css=STYLE,
    )
