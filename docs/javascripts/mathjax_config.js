// Read by MathJax when it starts: only what arithmatex has marked is mathematics.
window.MathJax = {
  tex: { inlineMath: [["\\(", "\\)"]], displayMath: [["\\[", "\\]"]], processEscapes: true },
  chtml: { matchFontHeight: false, scale: 1.1 },
  options: { ignoreHtmlClass: ".*", processHtmlClass: "arithmatex" },
};
