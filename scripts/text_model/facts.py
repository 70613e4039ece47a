"""Questions about Muster and about the model itself."""

from __future__ import annotations

import random

from scripts.text_model.questions import Question, ask

_DEFINE = (
    *("What is {t}?", "What is {t} in Muster?", "What does {t} mean?", "What does {t} mean in Muster?"),
    *("Explain {t}.", "Define {t}.", "Tell me about {t}.", "Describe {t}.", "What's {t}?", "Can you explain {t}?"),
    *("What do you know about {t}?", "I want to know what {t} is."),
)
#: Names of a thing, and what it is.
TERMS: tuple[tuple[tuple[str, ...], str], ...] = (
    (
        ("Muster", "the Muster server", "this server"),
        "Muster is a server for generative models. It has three programs: load balancer, controller and worker.",
    ),
    (
        ("draining", "a drain", "draining a worker"),
        "A draining worker takes no new tasks. It hands its tasks back or finishes them, and then it stops.",
    ),
    (
        ("the load balancer", "the balancer", "the loadbalancer"),
        "The load balancer owns every request: the HTTP API, the queue and the jobs.",
    ),
    (
        ("the controller", "the autoscaler", "autoscaling", "scaling"),
        "The controller decides how many workers there are. It starts and drains them.",
    ),
    (("a worker", "the worker", "workers"), "A worker owns one model on one device. It runs the steps of a batch."),
    (
        ("continuous batching", "step batching", "a batch", "step-level batching"),
        "Requests join and leave the running batch at any step.",
    ),
    (("a job", "a durable job", "jobs"), "A job is a request that is stored on disk. It survives a restart."),
    (
        ("scale to zero", "scaling to zero"),
        "A model without requests has no worker. The next request starts one.",
    ),
    (("an engine", "the engine", "engines"), "An engine runs the model inside a worker, one step at a time."),
    (
        ("429", "status 429", "error 429", "a full queue"),
        "429 means that the queue is full. Try again after the time in Retry-After.",
    ),
    (
        ("503", "status 503", "error 503"),
        "503 means that the model has no worker that can answer now.",
    ),
    (("a reload", "reload", "reloading"), "A reload reads the configuration again. Requests are not lost."),
)
_HOW = ("How do I {t}?", "How can I {t}?", "How to {t}?", "How do you {t}?", "What must I do to {t}?", "I want to {t}.")
#: Names of an action, and how to do it.
ACTIONS: tuple[tuple[tuple[str, ...], str], ...] = (
    (
        tuple(f"{verb} {what}" for verb in ("start", "run", "launch") for what in ("Muster", "the server", "it")),
        "Run ./scripts/serve and wait for the line that Muster is ready.",
    ),
    (
        tuple(f"{verb} {what}" for verb in ("stop", "end", "shut down") for what in ("Muster", "the server", "it")),
        "Press Ctrl-C in the terminal of the server.",
    ),
    (
        ("see what runs", "see the status", "show the workers", "see the workers", "list the workers"),
        "Run python -m controller status.",
    ),
    (
        ("reload the configuration", "change the configuration", "apply a new configuration"),
        "Edit the file, then run python -m controller reload.",
    ),
    (
        ("serve my own model", "add a model", "add my own model", "serve a model"),
        "Name it under models in muster.yaml, then run ./scripts/serve --config muster.yaml.",
    ),
    (
        ("get more workers", "scale a model", "add workers", "start more workers"),
        "Run python -m controller scale MODEL N.",
    ),
)
_SELF = (
    *("Who are you", "What are you", "What is your name", "Introduce yourself", "Tell me about yourself"),
    *("Which model are you", "Are you a language model", "Describe yourself", "Please introduce yourself"),
    *("What model are you", "Are you a human", "Are you ChatGPT", "Who made you", "What's your name"),
)
_HELP = (
    *("What can you do", "What can I ask you", "Help me", "What do you know", "How can you help me"),
    *("What questions can you answer", "What are you good at", "What can I ask", "Help"),
)
#: Phrases with one answer; each may have an ending.
CHAT: tuple[tuple[tuple[str, ...], tuple[str, ...], str], ...] = (
    (
        ("Hello", "Hi", "Hey", "Good morning", "Good evening", "Good day"),
        ("", " there", " Muster", " model", " friend", " again", " to you"),
        "Hello! Ask me about small numbers, spelling or Muster.",
    ),
    (
        ("Thanks", "Thank you", "Many thanks", "Great, thanks"),
        ("", " Muster", " a lot", " for the answer", " for your help", " again", ", friend"),
        "You are welcome.",
    ),
    (
        ("Goodbye", "Bye", "See you", "Good night", "Bye bye"),
        ("", " Muster", " model", ", friend", " and thanks", " for now"),
        "Goodbye.",
    ),
    (
        ("How are you", "How are you doing", "How is it going", "Are you well"),
        ("?", " today?", ", Muster?", ", friend?", " now?"),
        "I am well. Ask me about small numbers, spelling or Muster.",
    ),
    (_SELF, ("?", ".", ", please?", ", Muster?", ", friend?"), "I am the tiny text model that is built into Muster."),
    (
        _HELP,
        ("?", ".", ", please?", ", Muster?", ", friend?"),
        "I can add, subtract, multiply, compare, count and spell. I also know what Muster is.",
    ),
)


def muster_facts(rng: random.Random) -> Question:
    phrases, things = (_DEFINE, TERMS) if rng.random() < 0.65 else (_HOW, ACTIONS)
    names, answer = rng.choice(things)
    return ask("Muster", phrases, answer, rng, t=rng.choice(names))


def small_talk(rng: random.Random) -> Question:
    phrases, endings, answer = rng.choice(CHAT)
    return ask("small talk", [rng.choice(phrases) + rng.choice(endings)], answer, rng)
