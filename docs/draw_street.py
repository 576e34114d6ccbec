"""Draw rtseg_deploy/samples/street.png, the picture that the demo labels; drawn, so that it can be shipped.

A street on a dull day, seen from a car. Places are in metres: x to the right, y above the road, z ahead of the camera.
"""
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

WIDTH, HEIGHT = 960, 720  # drawn at twice the size that is saved, so that edges come out smooth
HORIZON, FOCAL, EYE = 340, 800, 1.9  # pixels from the top, pixels, metres above the road
KERB, WALL, END = 3.7, 7.2, 90  # where the pavements and the houses start, to either side; where the street ends
SKY, ASPHALT, PAINT, SLAB, JOINT, STONE = (240, 242, 245), (92, 93, 95), (205, 205, 200), (128, 123, 118), (108, 104, 100), (165, 162, 156)
GLASS, RUBBER, SKIN, HAIR, CLOTH, HEDGE, IRON = (44, 48, 54), (20, 20, 21), (150, 112, 92), (40, 34, 30), (33, 34, 41), (30, 34, 26), (78, 80, 82)
HOUSES = ((-1, 40, 60, 8, (122, 104, 90)), (-1, 26, 40, 7.5, (134, 124, 108)), (-1, 16, 26, 8.5, (112, 88, 76)), (-1, 4, 16, 9, (126, 112, 98)),
          (1, 44, 60, 7, (128, 116, 100)), (1, 32, 44, 8.5, (110, 90, 80)))  # side, from z, to z, height, colour
WALK, RIDE = (((-0.2, 0.1), (-0.1, 0.5)), ((0.2, 0.1), (0.1, 0.5))), (((-0.14, 0.2), (-0.16, 0.6)), ((0.14, 0.4), (0.17, 0.75)))  # feet, knees


def at(x, y, z):
    return WIDTH / 2 + FOCAL * x / z, HORIZON - FOCAL * (y - EYE) / z


def shade(colour, factor):
    return tuple(int(part * factor) for part in colour)


class Street(ImageDraw.ImageDraw):
    def flat(self, colour, x0, x1, z0, z1, y=0.0):
        self.polygon([at(x0, y, z0), at(x1, y, z0), at(x1, y, z1), at(x0, y, z1)], fill=colour)

    def along(self, colour, x, y0, y1, z0, z1):
        self.polygon([at(x, y0, z0), at(x, y0, z1), at(x, y1, z1), at(x, y1, z0)], fill=colour)

    def facing(self, colour, x0, x1, y0, y1, z, taper=0.0):
        self.polygon([at(x0, y0, z), at(x1, y0, z), at(x1 - taper, y1, z), at(x0 + taper, y1, z)], fill=colour)

    def limb(self, colour, thick, z, *points):
        self.line([at(x, y, z) for x, y in points], fill=colour, width=max(2, int(FOCAL * thick / z)), joint="curve")

    def disc(self, colour, x, y, z, radius):
        self.ellipse([at(x - radius, y + radius, z), at(x + radius, y - radius, z)], fill=colour)

    def ground(self):
        self.flat(ASPHALT, -KERB, KERB, 1, END)
        for z in range(3, 60, 6):
            self.flat(PAINT, -0.06, 0.06, z, z + 3)
        for side in -1, 1:
            self.flat(SLAB, side * KERB, side * WALL, 1, END, 0.12)
            for z in np.arange(2, 40, 0.9):
                self.flat(JOINT, side * KERB, side * WALL, z, z + 0.04, 0.12)
            self.flat(STONE, side * KERB, side * (KERB + 0.2), 1, END, 0.12)
            self.along(shade(STONE, 0.43), side * KERB, 0, 0.12, 1, END)

    def house(self, side, z0, z1, height, colour):
        x = side * WALL
        self.facing(shade(colour, 0.75), x, x + side * 8, 0, height, z0)
        for factor, y0, y1 in (1, 0, height), (0.7, 0, 0.5), (0.55, height, height + 0.3):
            self.along(shade(colour, factor), x, y0, y1, z0, z1)
        self.along(shade(colour, 0.65), x, height, height + 1.1, z1 - 2.5, z1 - 1.5)
        for y in np.arange(1.0, height - 1.5, 2.8):
            for z in np.arange(z0 + 0.7, z1 - 1.2, 2.2):
                self.along(PAINT, x, y - 0.12, y + 1.62, z - 0.1, z + 1.1)
                self.along(GLASS, x, y, y + 1.5, z, z + 1)

    def trees(self, rng, height, radius, *places):
        for x, z in np.repeat(places, 420, axis=0):  # so many tufts of leaves for each
            angle, reach = rng.uniform(0, 2 * np.pi), np.sqrt(rng.uniform())
            across, up = reach * np.cos(angle), reach * np.sin(angle)
            green = int(rng.uniform(38, 72) + 14 * up)  # lighter towards the sky
            self.disc((green - 6, green + 6, green - 18), x + radius * across, height + 0.9 * radius * up, z, rng.uniform(0.1, 0.32))

    def fence(self, side, z0, z1):
        self.along(HEDGE, side * (WALL + 0.6), 0, 1.5, z0, z1)
        for z in np.arange(z1, z0, -0.35):
            self.along(IRON, side * WALL, 0.1, 1.6, z, z + 0.08)
        self.along(IRON, side * WALL, 1.45, 1.53, z0, z1)

    def car(self, x, z, colour, lamps):
        self.flat(shade(ASPHALT, 0.55), x - 1, x + 1, z - 0.2, z + 4)
        for paint, y0, y1, z0, z1 in (RUBBER, 0, 0.62, 0.5, 1.1), (shade(colour, 0.8), 0.3, 0.9, 0, 4), (GLASS, 0.9, 1.45, 0.3, 2.8):
            self.along(paint, x - np.sign(x) * 0.85, y0, y1, z + z0, z + z1)  # the side that is seen
        body = (RUBBER, -0.8, 0.8, 0, 0.4, 0), (colour, -0.85, 0.85, 0.3, 0.9, 0), (colour, -0.85, 0.85, 0.9, 1.5, 0.2), (GLASS, -0.72, 0.72, 0.95, 1.42, 0.14)
        details = (lamps, -0.84, -0.6, 0.62, 0.86, 0), (lamps, 0.6, 0.84, 0.62, 0.86, 0), ((200, 190, 110), -0.26, 0.26, 0.5, 0.62, 0)
        for paint, x0, x1, y0, y1, taper in body + details:
            self.facing(paint, x + x0, x + x1, y0, y1, z, taper)

    def person(self, x, z, coat, head, legs, arms):
        for foot, knee in legs:
            self.limb(CLOTH, 0.17, z, (x + foot[0], foot[1]), (x + knee[0], knee[1]), (x, 0.95))
        self.limb(coat, 0.42, z, (x, 0.85), (x, 1.45))
        for reach, hand in arms:
            self.limb(shade(coat, 0.85), 0.12, z, (x + reach * 0.7, 1.42), (x + reach, 1.2), (x + reach, hand))
        self.disc(head, x, 1.65, z, 0.14)


def draw():
    image, rng = Image.new("RGB", (WIDTH, HEIGHT), SKY), np.random.default_rng(3)
    street = Street(image)
    street.ground()
    street.trees(rng, 3.5, 4, (0, 92), (-6, 88), (6, 88), (-9, 72), (9, 72), (-9, 64), (9, 64))
    for side, z0, z1, height, colour in HOUSES:
        street.house(side, z0, z1, height, colour)
    street.trees(rng, 3.7, 2.4, (9.6, 29), (9.6, 23), (9.6, 18), (9.6, 14), (9.6, 10.5))
    street.fence(1, 6, 32)
    for side, z in (1, 53), (-1, 50), (1, 37), (-1, 34), (-1, 20), (1, 16):  # lamp posts
        street.limb(shade(IRON, 0.8), 0.2, z, (side * 4.2, 0.1), (side * 4.2, 7), (side * 3, 7.2))
    for x, z, colour, lamps in (2.4, 34, (150, 152, 156), SKY), (-1.7, 22, (110, 26, 28), (190, 30, 24)), (2.4, 13, (40, 48, 74), SKY):
        street.car(x, z, colour, lamps)
    street.person(5.3, 12.5, (46, 40, 60), SKIN, WALK, [(-0.28, 0.85)])
    street.person(-5.4, 12, (60, 34, 34), SKIN, WALK, [(-0.28, 0.85)])
    street.limb(RUBBER, 0.09, 8, (-2.6, 0), (-2.6, 0.68))  # the wheel of a bicycle
    street.person(-2.6, 8, (40, 44, 58), HAIR, RIDE, [(-0.27, 1), (0.27, 1)])
    small = np.asarray(image.filter(ImageFilter.GaussianBlur(1.2)).resize((WIDTH // 2, HEIGHT // 2), Image.BILINEAR))
    return Image.fromarray(np.clip(small + rng.normal(0, 4, (*small.shape[:2], 1)), 0, 255).astype(np.uint8))  # a camera's grain


if __name__ == "__main__":
    draw().save(Path(__file__).resolve().parents[1] / "rtseg_deploy" / "samples" / "street.png", optimize=True)
