/* The release's own types describe a CommonJS module; this names what its ES module exports. */
import uPlot = require("./uPlot.types.cjs");
export default uPlot;
