"""What a policy would have done with a day of traffic: the live controller's decisions on simulated time.

`machine` is the simulated pool, `pilots` who decides, `replay` the clock, `report` what came of it; `traces` and
`synthetic` give the arrivals, `scenarios` put all together, `bound` is what somebody who knows the future would
have paid. `command` and `tune` are what people call.
"""
