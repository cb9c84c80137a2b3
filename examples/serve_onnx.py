"""Serve an exported network: POST an image, get its mask as a PNG of the same size.

python serve_onnx.py best.onnx 8000
curl --data-binary @photo.jpg http://localhost:8000 > mask.png
"""

import io
import json
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
about = {k: json.loads(v) for k, v in session.get_modelmeta().custom_metadata_map.items()}
height, width = about["size"]


def segment(image: Image.Image) -> Image.Image:
    pixels = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR), np.float32)
    pixels = (pixels / 255 - about["mean"]) / about["std"]
    images = pixels.astype(np.float32).transpose(2, 0, 1)[None]
    (probabilities,) = session.run(["probabilities"], {"images": images})
    whole = Image.fromarray(probabilities[0, 0]).resize(image.size, Image.Resampling.BILINEAR)
    return Image.fromarray(np.asarray(whole) >= about["threshold"])


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        image = ImageOps.exif_transpose(Image.open(io.BytesIO(content))).convert("RGB")
        self.send_response(200)
        self.send_header("Content-Type", "image/png")
        self.end_headers()
        segment(image).save(self.wfile, "PNG")


server = HTTPServer(("localhost", int(sys.argv[2])), Handler)
print(f"serving {about['class_names'][0]} masks on port {server.server_port}", flush=True)
server.serve_forever()
