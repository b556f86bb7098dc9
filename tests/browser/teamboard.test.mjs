// Teamboard in a real browser: what a team at one whiteboard relies on. All scenarios share one stack. Those of ./eventsource.mjs are about the browsers themselves.

import "./together.mjs";
import "./access.mjs";
import "./away.mjs";
import "./balancers.mjs";
import "./look.mjs";
import "./overview.mjs";
import "./client.mjs";
import "./recipes.mjs";
import "./eventsource.mjs";
