"""Run folders as `generate` leaves them, of plain colours, to make studies of."""

import json

from PIL import Image, PngImagePlugin

COLOURS = {"student": (200, 60, 40), "teacher": (40, 90, 200), "third": (60, 160, 80)}


def run_folder(path, method, prompts=8, seeds=1, size=64, first_seed=0):
    """Each picture carries its method in a text chunk, as a real one does, and its own shade."""
    (path / "images").mkdir(parents=True)
    rows = []
    for i in range(prompts):
        for s in range(seeds):
            n = i * seeds + s
            image = Image.new("RGB", (size, size), tuple((c + 7 * n) % 256 for c in COLOURS[method]))
            image.paste((255, 255, 255), (n % size // 2, 4, n % size // 2 + 12, 16))
            chunk = PngImagePlugin.PngInfo()
            chunk.add_text("allaprima", json.dumps({"card": method, "mode": method}))
            image.save(path / "images" / f"{n:05d}.png", pnginfo=chunk)
            seed = first_seed + s
            rows.append({"prompt": f"thing {i}, noto", "seed": seed, "image": f"images/{n:05d}.png", "score": n / 10})
    (path / "results.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path
