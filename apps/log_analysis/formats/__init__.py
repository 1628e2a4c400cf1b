"""The formats in which servers, proxies and load balancers write their access logs.

``fields`` parses the texts of fields; ``text``, ``tabbed`` and ``jsons`` are the known formats; ``template``
compiles a ``log_format`` of nginx or a ``LogFormat`` of Apache; ``detection`` detects the format of a line.
"""
