"""One made row per benchmark in the columns that its hub card documents; no row is copied."""

PICTURE = "bild.png"
MMMU = {f"image_{i}": None for i in range(2, 8)} | {"image_1": PICTURE}

#: By benchmark: a row, a right reply, a wrong reply.
ROWS = {
    "wemath": (
        {
            "ID": "2steps_7", "split": "testmini", "knowledge concept": "Area of Circles",
            "question": "How large is it?", "option": "A. 3;B. 4; C. No correct answer",
            "answer": "B", "image_path": PICTURE, "key": "2steps_1", "question number": 7,
        },
        "<Answer>: <<B>>", "<Answer>: <<C>>",
    ),
    "mathvista": (
        {
            "pid": "5", "question": "How long is the bar?", "decoded_image": PICTURE,
            "choices": None, "unit": "cm", "precision": 1.0, "answer": "1.2",
            "question_type": "free_form", "answer_type": "float",
            "metadata": {"source": "made", "task": "bars"}, "query": "Hint: say it.\nHow long?",
        },
        "It is 1.23.\n\\boxed{1.23}", "\\boxed{1.3}",
    ),
    "mathverse": (
        {
            "sample_index": "3", "problem_index": "1", "problem_version": "Text Lite",
            "question": "How large is x?\nChoices:\nA:30\nB:40", "image": PICTURE, "answer": "B",
            "question_type": "multi-choice", "metadata": {"subject": "Plane", "subfield": "Angle"},
            "query_wo": "Please answer. How large is x?", "query_cot": "Please think.",
        },
        "The answer is 40.", "The answer is A.",
    ),
    "hallusionbench": (
        {
            "category": "VD", "subcategory": "map", "visual_input": "1", "set_id": "0",
            "figure_id": "1", "question_id": "2", "question": "Is it red?", "gt_answer": "0",
            "gt_answer_details": "It is blue.", "filename": "a.png", "image": PICTURE,
        },
        "No, it is blue.", "Yes.",
    ),
    "ai2d": (
        {"question": "Which is it?", "options": ["a leaf", "a root"], "answer": "1",
         "image": PICTURE},
        "B", "a leaf",
    ),
    "mmmu": (
        {"id": "validation_Art_1", "question": "What is <image 1>?", "answer": "B",
         "options": "['a vase', 'a bowl']", "question_type": "multiple-choice", **MMMU},
        "The answer is (B).", "(A)",
    ),
    "mmstar": (
        {
            "index": 4, "question": "Which?\nOptions: A: red, B: blue, C: green, D: grey",
            "image": PICTURE, "answer": "C", "category": "colour", "l2_category": "hue",
        },
        "green", "D",
    ),
    "ocrbench": (
        {"dataset": "IIIT5K", "question": "What is written?", "question_type": "Text",
         "answer": ["STOP", "Stop!"], "image": PICTURE},
        "It says stop.", "It says go.",
    ),
    "mmmu_pro": (
        {"id": "test_Art_1", "question": "What is it?", "answer": "D", "subject": "Art",
         "options": "['1', '2', '3', '4']", **MMMU},
        "So it is the last one.\nAnswer: D", "Answer: A",
    ),
    "logicvista": (
        {"question": "Which two? A, B, C or D?", "answer": "A, C", "image": PICTURE},
        "The answer is C and A.", "The answer is A.",
    ),
    "visualpuzzles": (
        {"id": 9, "category": "Spatial", "image": PICTURE, "question": "Which follows?",
         "options": None, "answer": "D"},
        "It turns.\nAnswer: D", "Answer: B",
    ),
    "mathvision": (
        {"id": "8", "question": "Which ant?\n<image1>\n<image2>", "options": list("ABCDE"),
         "answer": "E", "decoded_image": PICTURE, "level": 2, "subject": "logic"},
        "\\boxed{E}", "\\boxed{A}",
    ),
    "vlms_are_blind": (
        {"task": "Counting Grid", "image": PICTURE, "groundtruth": "5,6", "metadata": "",
         "prompt": "Count and answer with numbers in curly brackets. For example, rows={5}"},
        "There are 5. rows={5} columns={6}", "rows={6} columns={5}",
    ),
    "vispuzzle": (
        {"pid": "1", "question": "Which piece fits?", "problem_image": PICTURE,
         "options": ["the left", "the right"], "answer": "(A)"},
        "the left", "B",
    ),
    "chartqa": (
        {"question": "How many?", "answer": "100", "image": PICTURE, "type": "human_test"},
        "104", "106",
    ),
    "vstar": (
        {"question_id": 0, "text": "What colour?\n(A) red\n(B) blue\nAnswer with the option's "
         "letter from the given choices directly.", "label": "B", "category": "direct",
         "image": PICTURE},
        "blue", "A",
    ),
    "blink": (
        {"idx": "val_Jigsaw_1", "sub_task": "Jigsaw", "question": "Which one?",
         "choices": ["the second image", "the third image"], "prompt": "Which?\n(A) 2\n(B) 3",
         "answer": "(B)", "image_1": PICTURE, "image_2": PICTURE, "image_3": PICTURE,
         "image_4": None},
        "(B)", "the second image",
    ),
    "mmvp": (
        {"Index": 3, "Question": "Is it open?", "Options": "(a) Open (b) Closed",
         "Correct Answer": "(b)", "image": PICTURE},
        "Closed", "(a)",
    ),
    "sat": (
        {"image_bytes": [PICTURE, PICTURE], "question": "Did I turn left?",
         "answers": ["left", "right"], "question_type": "ego", "correct_answer": "right"},
        "B", "left",
    ),
    "cv_bench": (
        {"idx": 0, "type": "2D", "task": "Count", "image": PICTURE, "question": "How many?",
         "choices": ["2", "3"], "answer": "(B)", "prompt": "How many?\n(A) 2\n(B) 3",
         "filename": "a.png", "source": "COCO"},
        "(B)", "2",
    ),
    "geometry3k": (
        {"id": "g1", "images": [PICTURE], "problem": "<image>Find x.", "answer": "12",
         "choices": ["10", "12", "14", "16"], "ground_truth": "B"},
        "So x is \\boxed{12}.", "\\boxed{14}",
    ),
}  # fmt: skip
ROWS["geometry3k_test"] = ROWS["geometry3k"]
ROWS["blink_jigsaw"] = ROWS["blink"]
ROWS["mathvision_testmini"] = ROWS["mathvision"]
#: A row in our own form: the hub has no copy.
ROWS["vsp_maze"] = (
    {
        "id": "m1", "image": PICTURE, "images": [PICTURE], "question": "Go.\n<TEST-IMAGE>",
        "answer": None, "choices": None, "source": "made", "group": "",
        "extra": {"level": 3, "grid": ["_*_", "___", "_@_"]},
    },
    "Action plan: U,U", "Action plan: L,L",
)  # fmt: skip
