local core = require "qmoon.core"
return { core = core, version = core.version }
