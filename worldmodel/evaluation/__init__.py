"""Policy evaluation in imagination: the job behind `worldmodel evaluate`."""
