"""HTML reports, figures and heatmaps: the job behind `worldmodel report`."""
