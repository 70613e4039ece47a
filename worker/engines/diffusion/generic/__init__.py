"""Any diffusers pipeline behind the step loop: requests run the pipeline's own code and meet at its denoiser.

Every request runs the pipeline's `__call__`, unchanged, in a thread of its own (`run`) on a copy of the pipeline
(`standins`) whose denoiser is a stand-in: a call of it waits. A step of the engine takes the calls that wait, joins
those that are alike into one forward pass (`layout`), deals the answer out, and lets each thread go on to its next
call. What a request may say is read from the signature of `__call__` (`arguments`).

What this costs against an engine with an adapter of its own: a few hundred microseconds per request and step, no
checkpoints, no previews, no adapters by request.
"""
