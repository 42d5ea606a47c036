// Lines are data until they are in sight, and text when they are: only textContent is ever set.
const ROW_PX = 19, SPARE_ROWS = 20, RETRY_MS = 1000;
const LEVELS = ["debug", "info", "warning", "error", "critical"];

export default {
  template: `
    <div class="log-view">
      <div class="log-bar">
        <input v-model="needle" @input="filter" type="search" placeholder="Search" aria-label="Search the lines">
        <select v-model="level" @change="filter" aria-label="Lowest level">
          <option v-for="one in levels" :key="one">{{ one }}</option>
        </select>
        <label><input type="checkbox" v-model="follow" @change="toEnd"> follow</label>
        <span class="log-count" role="status">{{ shown.toLocaleString() }} of {{ total.toLocaleString() }} lines</span>
        <span class="log-count" :class="{ error: errors }">{{ errors.toLocaleString() }} errors</span>
        <span class="log-count" :class="{ warning: warnings }">{{ warnings.toLocaleString() }} warnings</span>
        <span v-if="!connected" class="log-count error">connection lost, trying again</span>
      </div>
      <div ref="box" class="log-box" tabindex="0" role="region" aria-label="Log lines" @scroll="scrolled"><div ref="space" class="log-space"></div></div>
    </div>`,
  props: { url: String, lines_max: Number },
  data() {
    return { needle: "", level: "debug", follow: true, shown: 0, total: 0, errors: 0, warnings: 0, connected: true, levels: LEVELS };
  },
  mounted() {
    this.lines = []; this.matching = []; this.last = 0;
    this.aborter = new AbortController();
    this.observer = new ResizeObserver(() => this.draw());
    this.observer.observe(this.$refs.box);
    this.read();
  },
  unmounted() { this.aborter.abort(); this.observer.disconnect(); },
  methods: {
    async read() {
      while (!this.aborter.signal.aborted) {
        try {
          const separator = this.url.includes("?") ? "&" : "?";
          const answer = await fetch(this.url + separator + "after=" + this.last, { signal: this.aborter.signal });
          if (answer.status === 401) { location.reload(); return; }
          if (!answer.ok) throw new Error(answer.status);
          await this.take(answer.body.pipeThrough(new TextDecoderStream()).getReader());
        } catch (error) {
          if (error.name === "AbortError") return;
        }
        this.connected = false;
        await new Promise(resolve => setTimeout(resolve, RETRY_MS));
      }
    },
    async take(reader) {
      let rest = "";
      for (;;) {
        const { value, done } = await reader.read();
        if (done) return;
        this.connected = true;
        const parts = (rest + value).split("\n");
        rest = parts.pop();
        this.add(parts.filter(part => part).map(part => JSON.parse(part)));
      }
    },
    add(lines) {
      if (!lines.length) return;
      this.last = lines[lines.length - 1][0];
      for (const line of lines) {
        this.lines.push(line);
        this.count(line, 1);
        if (this.matches(line)) this.matching.push(line);
      }
      const surplus = this.lines.length - this.lines_max;
      if (surplus > 0) {
        const gone = this.lines.splice(0, surplus);
        gone.forEach(line => this.count(line, -1));
        const first = this.lines[0][0];
        let out = 0;
        while (out < this.matching.length && this.matching[out][0] < first) out++;
        this.matching.splice(0, out);
      }
      this.later();
    },
    count(line, by) {
      if (line[2] === "error" || line[2] === "critical") this.errors += by;
      if (line[2] === "warning") this.warnings += by;
    },
    matches(line) {
      if (LEVELS.indexOf(line[2]) < LEVELS.indexOf(this.level)) return false;
      if (!this.needle) return true;
      const needle = this.needle.toLowerCase();
      return line[5].toLowerCase().includes(needle) || line[3].toLowerCase().includes(needle);
    },
    filter() { this.matching = this.lines.filter(line => this.matches(line)); this.draw(); },
    later() {
      if (this.waiting) return;
      this.waiting = requestAnimationFrame(() => { this.waiting = 0; this.draw(); });
    },
    scrolled() {
      const box = this.$refs.box;
      const atEnd = box.scrollTop + box.clientHeight >= box.scrollHeight - ROW_PX;
      if (!atEnd && box.scrollTop < (this.top || 0)) this.follow = false;
      if (atEnd) this.follow = true;
      this.top = box.scrollTop;
      this.later();
    },
    toEnd() { if (this.follow) this.draw(); },
    draw() {
      const box = this.$refs.box, space = this.$refs.space;
      if (!box) return;
      this.total = this.lines.length; this.shown = this.matching.length;
      space.style.height = this.matching.length * ROW_PX + "px";
      if (this.follow) box.scrollTop = box.scrollHeight;
      const first = Math.max(0, Math.floor(box.scrollTop / ROW_PX) - SPARE_ROWS);
      const rows = this.matching.slice(first, first + Math.ceil(box.clientHeight / ROW_PX) + 2 * SPARE_ROWS);
      space.replaceChildren(...rows.map((line, index) => this.row(line, first + index)));
    },
    row(line, index) {
      const row = document.createElement("div");
      row.className = "log-row " + line[2];
      row.style.top = index * ROW_PX + "px";
      const time = new Date(line[1]);
      const parts = [
        ["log-time", time.toLocaleTimeString(undefined, { hour12: false }) + "." + String(time.getMilliseconds()).padStart(3, "0"), time.toISOString()],
        ["log-level", line[2], ""], ["log-worker", line[3], line[4]], ["log-text", line[5], line[5]],
      ];
      for (const [name, text, title] of parts) {
        const cell = document.createElement("span");
        cell.className = name; cell.textContent = text;
        if (title) cell.title = title;
        row.appendChild(cell);
      }
      return row;
    },
  },
};
