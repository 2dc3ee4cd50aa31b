"""Desired state: YAML in, checked models out. `bundle.load` is the way in, `normal.normal_form` compares.

yaml_text (values with places) -> frame (top-level keys) -> layers, targets (one tree) -> variables
-> schema (pydantic) -> complete (defaults) -> rules, support, site_rules -> Desired

Codes: SS100 too many errors · SS101..SS129 rules of an endpoint, listed at the end of `rules` · SS130..SS139
not supported yet · SS140..SS149 warnings of an endpoint · SS150 syntax · SS151 characters · SS152 duplicate
key · SS153 tag · SS154 alias · SS155 too large · SS156 number · SS157 structure · SS160 unknown key · SS161
wrong value · SS162 missing key · SS170 given in two files · SS171 ignored resources · SS172, SS173 targets ·
SS174..SS177 variables · SS180..SS199, SS210..SS214 rules of the site, listed at the end of `site_rules` ·
SS220 a further rule of an endpoint
"""
