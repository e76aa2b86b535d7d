"""The words for what a MovingShapes video shows, and the forms of sentences about it.

The wordings of a tuple stand from common to rare. Verbs come first and uninflected. There are many wordings, as many
people would choose them: a model that has read few does not understand people who search in their own words.
"""

from datasets.moving_shapes.scene import COLOURS

GO = ("move", "go", "slide", "travel", "glide", "drift", "float", "fly", "head")
PICTURE = ("picture", "screen", "frame", "image")
ACROSS = {
    way: (
        f"{{go}} to the {way}",
        f"{{go}} {way}",
        f"{{go}} from {start} to {way}",
        f"{{go}} towards the {way}",
        f"{{go}} from the {start} to the {way}",
        f"{{go}} {way}wards",
        f"{{go}} {way} across the {{picture}}",
        f"{{go}} {start} to {way}",
    )
    for way, start in (("left", "right"), ("right", "left"))
}
UP_OR_DOWN = {
    way: (
        f"{{go}} {way}",
        verbs[0],
        f"{{go}} {way}wards",
        f"{{go}} to the {goal}",
        verbs[1],
        f"{{go}} from {start} to {goal}",
        f"{{go}} {way}ward",
        *verbs[2:],
        f"{{go}} towards the {goal}",
        f"{{go}} from the {start} to the {goal}",
    )
    for way, start, goal, verbs in (
        ("up", "bottom", "top", ("rise", "climb", "rise up", "ascend")),
        ("down", "top", "bottom", ("fall", "drop", "sink", "descend")),
    )
}
DIAGONAL = {
    f"{y} {x}": (
        f"{{go}} diagonally {y} {x}",
        f"{{go}} to the {goal} {x}",
        f"{{go}} {y} and to the {x}",
        f"{{go}} diagonally to the {near} {x}",
        f"{{go}} towards the {goal} {x} corner",
        f"{verb} to the {x}",
        f"{{go}} from {start} {other} to {goal} {x}",
    )
    for y, start, goal, near, verb in (
        ("up", "bottom", "top", "upper", "rise"),
        ("down", "top", "bottom", "lower", "sink"),
    )
    for x, other in (("left", "right"), ("right", "left"))
}
WORDS: dict[str, dict[str, tuple[str, ...]]] = {
    "size": {"small": ("small", "little", "tiny"), "big": ("big", "large", "huge", "giant")},  # medium: unnamed
    "colour": {name: (name,) for name in COLOURS}
    | {"purple": ("purple", "violet"), "cyan": ("cyan", "turquoise", "aqua", "teal")},
    "shape": {
        "circle": ("circle", "ball", "disc", "dot", "sphere", "disk"),
        "square": ("square", "box", "block", "cube"),
        "triangle": ("triangle", "triangular shape"),
        "star": ("star", "star shape", "pointed star"),
        "cross": ("cross", "plus sign", "plus"),
        "ring": ("ring", "donut", "hoop", "doughnut"),
        "moon": ("moon", "crescent", "half moon", "crescent moon"),
    },
    "path": ACROSS
    | UP_OR_DOWN
    | DIAGONAL
    | {
        "circle": (
            "move in a circle",
            "go in circles",
            "go around in a circle",
            "go round and round",
            "circle around",
            "move around in circles",
            "travel in a circle",
        ),
        "bounce": (
            "bounce up and down",
            "bounce",
            "jump up and down",
            "keep bouncing",
            "hop up and down",
            "go up and down",
            "jump",
            "hop",
        ),
        "zigzag": (
            "zigzag",
            "move in a zigzag",
            "zigzag across the {picture}",
            "go in a zigzag",
            "move in zigzags",
            "zigzag along",
        ),
        "still": (
            "stay still",
            "do not move",
            "stay in one place",
            "stand still",
            "remain still",
            "sit still",
            "stay put",
            "stay motionless",
        ),
        "spin": (
            "spin",
            "rotate",
            "spin in place",
            "spin around",
            "keep spinning",
            "rotate on the spot",
            "turn around on the spot",
            "rotate in place",
        ),
    },
    "change": {  # {then}: the new colour or direction; {edge}, {at}: where the object comes in or goes out
        "colour": (
            "turn {then}",
            "change to {then}",
            "become {then}",
            "change colour",
            "change color to {then}",
            "change its colour",
            "switch to {then}",
            "go {then}",
        ),
        "turn": (
            "turn {then}",
            "change direction",
            "turn to go {then}",
            "change course",
            "start moving {then}",
        ),
        "grow": ("grow", "get bigger", "become larger", "expand", "increase in size"),
        "shrink": ("shrink", "get smaller", "become smaller", "decrease in size"),
        "disappear": ("disappear", "vanish", "suddenly disappear", "suddenly vanish", "disappear from view"),
        "appear": ("appear", "show up", "pop up", "suddenly appear", "appear out of nowhere", "pop into view"),
        "stop": ("stop", "stop moving", "come to a stop", "come to a halt", "suddenly stop", "halt"),
        "spin": ("start to spin", "start spinning", "begin to rotate", "start rotating", "begin to spin"),
        "leave": (
            "leave the {picture}",
            "leave {at}",
            "{go} out of the {picture}",
            "exit {at}",
            "{go} out {at}",
            "{go} off the {picture}",
        ),
        "enter": (
            "come in from the {edge}",
            "enter from the {edge}",
            "enter the {picture}",
            "come into the {picture}",
            "slide in from the {edge}",
            "move in from the {edge}",
        ),
    },
    "background": {
        "black": (
            "a black background",
            "a dark background",
            "a plain background",
            "black",
            "a plain black background",
            "a black screen",
            "a solid background",
        ),
        "grey": (
            "a grey background",
            "a gray background",
            "a plain background",
            "grey",
            "a plain grey background",
            "a solid background",
            "gray",
        ),
        "pale": (
            "a light background",
            "a bright background",
            "a pale background",
            "a light grey background",
            "a light gray background",
            "a whitish background",
        ),
        "gradient": (
            "a gradient",
            "a faded background",
            "a background with a gradient",
            "a shaded background",
            "a dark to light gradient",
        ),
        "stripes": (
            "stripes",
            "a striped background",
            "horizontal stripes",
            "a background with stripes",
            "lines",
            "a stripy background",
            "horizontal lines",
            "bars",
        ),
        "checkerboard": (
            "a checkerboard",
            "a checkered background",
            "a chess board",
            "a checkerboard pattern",
            "a chessboard",
            "a chequered background",
            "a checked background",
            "a checkered pattern",
        ),
        "dots": (
            "dots",
            "a dotted background",
            "a background with dots",
            "polka dots",
            "a spotted background",
            "spots",
            "a dotted pattern",
        ),
    },
}
CUT_SHORT = r"from|across|top|bottom|corner| to (left|right)|keep|circles|\bround"
UNTRUE_WITH = {  # by the change of an object: wordings of its path, as patterns, that do not hold to the end
    "stop": CUT_SHORT,
    "appear": CUT_SHORT,
    "disappear": CUT_SHORT,
    "spin": "not move|still|motionless",
}
ANY_SHAPE = ("shape", "object", "thing", "figure", "item")
LEAVES_AT = {"left": "left", "right": "right", "up": "top", "down": "bottom"}
ENTERS_FROM = {"left": "right", "right": "left", "up": "bottom", "down": "top"}
TURNED = {
    "left": ("left", "to the left"),
    "right": ("right", "to the right"),
    "up": ("upwards", "towards the top"),
    "down": ("downwards", "towards the bottom"),
}
# Verbs that double their last letter before -ing.
DOUBLED = ("begin", "drop", "get", "hop", "pop", "sit", "spin", "stop", "travel", "zigzag")
PARTICIPLES = {  # where a second -ing would sound wrong
    "do not move": "not moving",
    "keep bouncing": "bouncing",
    "keep spinning": "spinning",
    "start moving": "starting to move",
    "start rotating": "starting to rotate",
    "start spinning": "starting to spin",
    "stop moving": "stopping",
}

# Forms of a sentence: finite ("a ball goes left"), nominal ("a ball going left"), seen ("we see a ball go left").
CLAUSE = {
    "finite": ("{noun} {moves}", "{noun} is {moving}"),
    "nominal": ("{noun} {moving}", "{noun} that {moves}", "{noun} which {moves}", "{noun} that is {moving}"),
    "seen": ("{noun} {move}",),
}
PATH_AND_CHANGE = {  # of one object, by how its change bears on its path
    "ends": (
        "{move} and then {change}",
        "{move} until it {changes}",
        "{move} and {change}",
        "{move} before it {changes}",
        "first {move} and then {change}",
        "{change} after {moving}",
        "{move} then {change}",
        "{move} before {changing}",
    ),
    "begins": ("{change} and {move}", "{change} and then {move}", "{move} after {changing}", "{change} then {move}"),
    "goes on": (
        "{move} and {change}",
        "{move} and then {change}",
        "{change} while {moving}",
        "{change} as it {moves}",
        "{move} while {changing}",
    ),
}
OPPOSITES = {  # wordings of changes: the n-th of one change says the opposite of the n-th of its twin
    "appear": ("appear", "suddenly appear"),
    "disappear": ("disappear", "suddenly disappear"),
    "grow": ("grow", "get bigger", "become larger", "increase in size"),
    "shrink": ("shrink", "get smaller", "become smaller", "decrease in size"),
}
BEGINS, ENDS = ("appear", "enter"), ("turn", "disappear", "stop", "leave")  # the other changes let the path go on
JOINED = {  # two clauses
    "apart": {
        "finite": ("{0.finite} and {1.finite}", "{0.finite} but {1.finite}", "{0.finite} whereas {1.finite}"),
        "nominal": ("{0.nominal} and {1.nominal}", "{0.nominal} and also {1.nominal}"),
    },
    "at once": {
        "finite": (
            "{0.finite} while {1.finite}",
            "{0.finite} and {1.finite}",
            "{0.finite} as {1.finite}",
            "while {0.finite} {1.finite}",
            "{0.finite} and at the same time {1.finite}",
            "{0.finite} with {1.nominal}",
            "{0.finite} but {1.finite}",
            "{0.finite} whereas {1.finite}",
        ),
        "nominal": (
            "{0.nominal} and {1.nominal}",
            "{0.nominal} while {1.finite}",
            "{0.nominal} with {1.nominal}",
            "{0.nominal} as {1.finite}",
            "{0.nominal} and also {1.nominal}",
            "{0.nominal} together with {1.nominal}",
        ),
    },
    "earlier first": {
        "finite": (
            "{0.finite} and then {1.finite}",
            "first {0.finite} and then {1.finite}",
            "{0.finite} before {1.finite}",
            "{0.finite} then {1.finite}",
            "after {0.finite} {1.finite}",
            "{0.finite} and afterwards {1.finite}",
            "{0.finite} and later {1.finite}",
            "{0.finite} and after that {1.finite}",
            "once {0.finite} {1.finite}",
        ),
        "nominal": (
            "{0.nominal} and then {1.nominal}",
            "{0.nominal} before {1.finite}",
            "{0.nominal} followed by {1.nominal}",
            "{0.nominal} then {1.nominal}",
        ),
    },
    "later first": {
        "finite": ("{0.finite} after {1.finite}", "before {0.finite} {1.finite}"),
        "nominal": ("{0.nominal} after {1.finite}",),
    },
}
BOTH = {
    "finite": (
        "{0} and {1} both {move}",
        "{0} and {1} {move}",
        "{0} and {1} are both {moving}",
        "both {0} and {1} {move}",
        "{0} and {1} are {moving}",
        "{0} {moves} just like {1}",
    ),
    "nominal": ("{0} and {1} both {moving}", "{0} and {1} {moving}"),
    "seen": ("{0} and {1} both {move}", "{0} and {1} {move}"),
}
THREE = {
    "finite": (
        "{} and {} and {} can be seen",
        "{} and {} and {} are shown",
        "{} {} and {} are visible",
    ),
    "nominal": ("{} and {} and {}", "{} {} and {}", "{} with {} and {}"),
}
TOGETHER = {  # objects in a single frame, by their number
    1: ("{}",),
    2: ("{} and {}", "{} with {}", "{} next to {}", "{} {}", "{} beside {}"),
    3: THREE["nominal"],
}
OPENINGS = {
    "finite": ("in this video", "in this clip", "in the video", "here", "we see that", "in the clip"),
    "nominal": (
        "a video of",
        "we see",
        "you can see",
        "a clip of",
        "the video shows",
        "an animation of",
    ),
    "seen": ("we see", "you can see", "watch"),
}
BEHIND = (
    "{text} on {background}",
    "{text} over {background}",
    "{text} against {background}",
    "on {background} {text}",
    "{text} in front of {background}",
    "over {background} {text}",
    "against {background} {text}",
)
BEHIND_PATTERN = ("{text} with {background} in the background", "{text} with {background} behind {them}")
PATTERNED = ("stripes", "checkerboard", "dots")  # the backgrounds that BEHIND_PATTERN can name
BEHIND_ADJECTIVE = (
    "{text} with {background}",
    "{text} and the background is {look}",
    "the background is {look} and {text}",
)
