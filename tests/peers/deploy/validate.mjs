// Holds objects against the schemas that Prometheus's operator publishes.  node validate.mjs OBJECTS.json
import { readFileSync } from "node:fs";
import { PodMonitor } from "@kubernetes-models/prometheus-operator/monitoring.coreos.com/v1/PodMonitor";
import { PrometheusRule } from "@kubernetes-models/prometheus-operator/monitoring.coreos.com/v1/PrometheusRule";

const kinds = { PodMonitor, PrometheusRule };
const objects = JSON.parse(readFileSync(process.argv[2], "utf8"));
for (const object of objects) {
  new kinds[object.kind](object).validate();
}
console.log(`${objects.length} objects fit`);
