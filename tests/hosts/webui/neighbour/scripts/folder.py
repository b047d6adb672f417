"""A script that works on a folder of pictures as the img2img tab's "Batch" does, which the hosts' API cannot ask."""

import gradio as gr
from modules import img2img, scripts

NO_SCRIPT = (0,)  # the number of the script that is chosen for each picture


class Folder(scripts.Script):
    def title(self):
        return "Folder"

    def show(self, is_img2img):
        return is_img2img

    def ui(self, is_img2img):
        return [gr.Textbox("", visible=False)]

    def run(self, p, folder):
        """Each picture's own text is its prompt."""
        return img2img.process_batch(p, folder, "", "", NO_SCRIPT, use_png_info=True, png_info_props=["Prompt"])
