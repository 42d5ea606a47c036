// A small chart of what a worker does, on a canvas: fifty of them cost less than one chart library.
// Points are [Unix seconds, value of each series or null]; a series has a name, a lane from the top,
// a unit, a colour and, where it is not the largest value in sight, its maximum.
const POINTS_MAX = 240, LANE_PX = 46, GAP_PX = 12, LABEL_PX = 52;

export default {
  template: `
    <div style="width:100%">
      <canvas ref="canvas" role="img" :aria-label="label + ': ' + summary" :title="hovered" @mousemove="hover" style="width:100%;display:block"></canvas>
      <div class="chunk-legend" aria-hidden="true">
        <span v-for="(one, index) in series" :key="one.name"><i :style="{background: one.color}"></i>{{ one.name }} {{ said[index] }}</span>
      </div>
    </div>`,
  props: { label: String, series: Array, points: Array },
  data() { return { hovered: "", summary: "nothing yet", said: [] }; },
  mounted() {
    this.kept = this.points.slice();
    this.observer = new ResizeObserver(() => this.draw());
    this.observer.observe(this.$el);
    this.look = matchMedia("(prefers-color-scheme: dark)");
    this.redraw = () => requestAnimationFrame(() => this.draw());
    this.look.addEventListener("change", this.redraw);
  },
  unmounted() { this.observer.disconnect(); this.look.removeEventListener("change", this.redraw); },
  methods: {
    push(points) {
      this.kept = this.kept.concat(points).slice(-POINTS_MAX);
      this.draw();
    },
    draw() {
      const canvas = this.$refs.canvas, width = this.$el.clientWidth, ratio = window.devicePixelRatio || 1;
      if (!width) return;
      const lanes = 1 + Math.max(...this.series.map(one => one.lane));
      const height = lanes * (LANE_PX + GAP_PX);
      canvas.width = width * ratio; canvas.height = height * ratio; canvas.style.height = height + "px";
      const context = canvas.getContext("2d");
      context.scale(ratio, ratio);
      const style = getComputedStyle(document.body);
      this.tops = this.maxima(lanes);
      for (let lane = 0; lane < lanes; lane++) this.axis(context, lane, width, style);
      this.series.forEach((one, index) => this.line(context, one, index, width));
      const last = this.kept[this.kept.length - 1];
      this.said = this.series.map((one, index) => last ? this.shown(one, last[index + 1]) : "");
      this.summary = this.series.map((one, index) => one.name + " " + this.said[index]).join(", ");
    },
    maxima(lanes) {
      const tops = Array(lanes).fill(0);
      this.series.forEach((one, index) => {
        const largest = one.max || Math.max(1, ...this.kept.map(point => point[index + 1] || 0));
        tops[one.lane] = Math.max(tops[one.lane], largest);
      });
      return tops;
    },
    axis(context, lane, width, style) {
      const top = lane * (LANE_PX + GAP_PX) + GAP_PX / 2;
      context.strokeStyle = style.getPropertyValue("--line");
      context.fillStyle = style.getPropertyValue("--dim");
      context.font = "11px system-ui, sans-serif"; context.textAlign = "right"; context.textBaseline = "middle";
      const unit = this.series.find(one => one.lane === lane).unit;
      for (const [share, y] of [[1, top], [0, top + LANE_PX]]) {
        context.beginPath(); context.moveTo(LABEL_PX, y + 0.5); context.lineTo(width, y + 0.5); context.stroke();
        context.fillText(Math.round(this.tops[lane] * share).toLocaleString() + (share ? unit : ""), LABEL_PX - 6, y);
      }
    },
    line(context, one, index, width) {
      const top = one.lane * (LANE_PX + GAP_PX) + GAP_PX / 2;
      context.strokeStyle = one.color; context.lineWidth = 1.6; context.lineJoin = "round";
      context.beginPath();
      let drawing = false;
      for (const point of this.kept) {
        const value = point[index + 1];
        if (value === null) { drawing = false; continue; }
        const x = this.x(point[0], width), y = top + LANE_PX * (1 - Math.min(1, value / this.tops[one.lane]));
        if (drawing) context.lineTo(x, y); else context.moveTo(x, y);
        drawing = true;
      }
      context.stroke();
    },
    x(time, width) {
      const first = this.kept[0][0], last = this.kept[this.kept.length - 1][0];
      return LABEL_PX + (width - LABEL_PX - 2) * (last > first ? (time - first) / (last - first) : 1);
    },
    shown(one, value) { return value === null ? "-" : Math.round(value).toLocaleString() + one.unit; },
    hover(event) {
      const width = this.$el.clientWidth;
      let best = null, distance = Infinity;
      for (const point of this.kept) {
        const away = Math.abs(this.x(point[0], width) - event.offsetX);
        if (away < distance) { best = point; distance = away; }
      }
      if (!best) return;
      const values = this.series.map((one, index) => one.name + " " + this.shown(one, best[index + 1]));
      this.hovered = new Date(best[0] * 1000).toLocaleTimeString() + ": " + values.join(", ");
    },
  },
};
