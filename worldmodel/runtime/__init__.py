"""The monitor at run time: the jobs behind `worldmodel watch` and `worldmodel serve`."""
