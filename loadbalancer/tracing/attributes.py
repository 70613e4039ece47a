"""Names of span attributes.

Those of OpenTelemetry's conventions for HTTP are stable. Those for generative models (`gen_ai`) still change, and the
Python package of the conventions has moved them more than once: so they are constants here.
"""

from __future__ import annotations

METHOD = "http.request.method"
ROUTE = "http.route"
STATUS = "http.response.status_code"
RESPONSE_BYTES = "http.response.body.size"
ERROR_TYPE = "error.type"

OPERATION = "gen_ai.operation.name"
OUTPUT_TYPE = "gen_ai.output.type"
REQUEST_MODEL = "gen_ai.request.model"
INPUT_TOKENS = "gen_ai.usage.input_tokens"
OUTPUT_TOKENS = "gen_ai.usage.output_tokens"
#: Seconds, by the names that vLLM uses.
TIME_IN_QUEUE = "gen_ai.latency.time_in_queue"
TIME_TO_FIRST_TOKEN = "gen_ai.latency.time_to_first_token"  # noqa: S105 - no password

REQUEST_ID = "muster.request_id"
OWNER = "muster.owner"
TASKS = "muster.tasks"
TASK = "muster.task"
WORKER = "muster.worker"
#: Steps that the task has made on this worker, and the step that it began with.
STEPS = "muster.steps"
RESUMED_AT = "muster.resumed_at"
#: How a stay on a worker or in the queue has ended.
OUTCOME = "muster.outcome"
RUN_TIME = "muster.run_time"
JOB = "muster.job"

#: Operation and type of the output by the path of the API.
OPERATIONS = {
    "/v1/chat/completions": ("chat", "text"),
    "/v1/responses": ("chat", "text"),
    "/v1/completions": ("text_completion", "text"),
    "/v1/embeddings": ("embeddings", ""),
    "/v1/images/generations": ("generate_content", "image"),
    "/v1/images/edits": ("generate_content", "image"),
}
